#!/usr/bin/env bash
# Runs what operators do with etcdctl on a cluster of three members named m1, m2 and m3, which is empty:
#
#     cluster.sh ETCDCTL ENDPOINTS
#
# Prints each command with its answer, as quickstart.sh does. Names replace what may differ between two right clusters:
# ids, ports, times, sizes, log positions, terms and versions; lines of all members are put in order.
set -euo pipefail
[[ $# -eq 2 ]] || { echo "usage: cluster.sh ETCDCTL ENDPOINTS" >&2; exit 2; }
etcdctl=$1 endpoints=$2
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

ask() { "$etcdctl" --endpoints "$endpoints" --command-timeout 20s "$@"; }
id() { ask member list | awk -F ', ' -v name="$1" '$3 == name { print $1 }'; }
client() { ask member list | awk -F ', ' -v name="$1" '$3 == name { print $5 }'; }
field() { awk -v name="\"$1\"" '$1 == name { print $3 }' "$dir/leader"; }
leader() {
    local name
    for name in m1 m2 m3; do
        if ask --endpoints "$(client "$name")" endpoint status --write-out=fields >"$dir/leader" 2>&1; then
            [[ $(field Leader) == "$(field MemberID)" ]] && { echo "$name"; return; }
        fi
    done
    echo nobody
}

names=()
learn_names() {
    local name number
    names=()
    for name in m1 m2 m3 new; do
        number=${!name:-$(id "$name")}
        [[ -n $number ]] || continue
        names+=(-e "s/$number/<$name>/g" -e "s/\b$(printf '%u' "0x$number" 2>/dev/null || echo -)\b/<$name>/g")
    done
}
normal() {
    sed -E "${names[@]}" \
        -e 's/"(cluster_id)":"?[0-9a-f]+"?/"\1":ID/g; s/Cluster [ 0-9a-f]{16}/Cluster ID/' \
        -e 's/in cluster +[0-9a-f]+/in cluster ID/' \
        -e 's/127\.0\.0\.1:[0-9]+/ADDRESS/g; s/took (= )?[0-9.]+(ms|µs|s)/took TIME/' \
        -e 's/"raft_term":[0-9]+/"raft_term":N/g; s/"ts":"[^"]*"/"ts":"TIME"/g'
}
# run ARGUMENT..: runs one etcdctl command. `sorted` puts the lines of its answer in order.
run() {
    local status=0
    echo "\$ etcdctl $*" | normal
    ask "$@" >"$dir/out" 2>"$dir/err" || status=$?
    normal <"$dir/out"
    grep -v '^{"level"' "$dir/err" | normal || true
    [[ $status -eq 0 ]] || echo "exit status $status"
}
sorted() { run "$@" | sort; }

# A member is known by its own name once it has published it.
for name in m1 m2 m3; do
    for _ in $(seq 100); do
        [[ -n $(id "$name") ]] && break
        sleep 0.1
    done
done
new=
learn_names

echo "== endpoints"
for i in $(seq 20); do ask put "key/$i" "value $i" >/dev/null; done
sorted endpoint health
sorted endpoint health --cluster
sorted endpoint hashkv --cluster
sorted endpoint hashkv
ask endpoint status --cluster --write-out=json |
    tr '{' '\n' | grep -oE '"(version|dbSizeQuota|leader|isLearner|errors)":[^,}]+' | normal |
    sed -E 's/<m[123]>/<a member>/; s/"version":"[^"]*"/"version":V/' | sort | uniq -c

echo "== members"
sorted member list
run member add new --peer-urls http://127.0.0.1:1 --learner
new=$(ask member list | awk -F ', ' '$2 == "unstarted" { print $1 }')
learn_names
sorted member list
run member promote "$new"
run member update "$new" --peer-urls http://127.0.0.1:2
sorted member list
run member remove "$new"
run member remove "$new"
run member promote "$(id m1)"
run member add m1 --peer-urls "$(ask member list | awk -F ', ' '$3 == "m1" { print $4 }')"
new=
sorted member list

echo "== leadership"
for to in m1 m2 m3; do
    [[ $(leader) == "$to" ]] || run move-leader "$(id "$to")" | sed -E 's/from <m[123]>/from <a member>/'
    echo "leader: $(leader)"
done
ask --endpoints "$(client m1)" move-leader "$(id m2)" 2>&1 | grep -v '^{"level"' | normal || true
run move-leader 1234

echo "== locks, elections, watches and leases through every member"
for name in m1 m2 m3; do
    endpoints=$(client "$name")
    run lock "lock-$name" echo locked
    timeout 10 "$etcdctl" --endpoints "$endpoints" elect "race-$name" "$name" >"$dir/elect" 2>"$dir/err" &
    elected=$!
    for _ in $(seq 100); do
        grep -q "^$name\$" "$dir/elect" && break
        sleep 0.1
    done
    kill "$elected" || true
    wait "$elected" 2>"$dir/err" || true
    grep "^$name\$" "$dir/elect"
    lease=$(ask lease grant 300 | awk '{ print $2 }')
    run put --lease="$lease" "leased/$name" there | sed "s/$lease/LEASE/"
    run lease keep-alive --once "$lease" | sed "s/$lease/LEASE/"
    run lease timetolive --keys "$lease" | sed -E "s/$lease/LEASE/; s/remaining\([0-9]+s\)/remaining(TIME)/"
    run lease revoke "$lease" | sed "s/$lease/LEASE/"
    run get "leased/$name"
    run get --prefix key/1
    run get --consistency=s key/2
    run alarm list
    run defrag
done
endpoints=$2
# Keys of locks and elections have ids of leases in them: hashes differ between clusters, and not within one.
ask endpoint hashkv --cluster | cut -d ' ' -f 2- | sort -u | sed -E 's/^[0-9]+/HASH/'
