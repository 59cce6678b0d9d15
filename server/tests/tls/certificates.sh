# Certificates for tests, made by OpenSSL in the current directory: NAME.pem and NAME.key. Sourced, never run.

# authority NAME: a CA.
authority() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj "/CN=$1" \
        -keyout "$1.key" -out "$1.pem" 2>/dev/null
}

# certificate NAME CA KEYKIND SAN CN [OPTIONS..]: a certificate of that CA for clients and servers.
certificate() {
    local name=$1 ca=$2 kind=$3 san=$4 cn=$5
    shift 5
    case $kind in
    rsa) openssl genrsa -out "$name.key" 2048 ;;
    rsa1) openssl genrsa -traditional -out "$name.key" 2048 ;;
    ed25519) openssl genpkey -algorithm ed25519 -out "$name.key" ;;
    sec1) openssl ecparam -name prime256v1 -genkey -noout -out "$name.key" ;;
    *) openssl genpkey -algorithm EC -pkeyopt "ec_paramgen_curve:$kind" -out "$name.key" ;;
    esac 2>/dev/null
    openssl req -new -key "$name.key" -subj "/CN=$cn" -out "$name.csr" 2>/dev/null
    printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\n' "$san" >"$name.ext"
    [[ $* ]] || set -- -days 30
    openssl x509 -req -in "$name.csr" -CA "$ca.pem" -CAkey "$ca.key" -CAcreateserial -extfile "$name.ext" "$@" \
        -out "$name.pem" 2>/dev/null
}
