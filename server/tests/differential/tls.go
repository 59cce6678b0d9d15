package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// credentials is what a server and its client show each other: files of one folder, and the client's part of them. The
// zero value stands for no TLS.
type credentials struct {
	dir    string
	client *tls.Config
}

// readCredentials reads a CA's ca.pem, and client.pem and client.key. The server reads server.pem and server.key.
func readCredentials(dir string) (credentials, error) {
	if dir == "" {
		return credentials{}, nil
	}
	authority, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		return credentials{}, err
	}
	trusted := x509.NewCertPool()
	if !trusted.AppendCertsFromPEM(authority) {
		return credentials{}, fmt.Errorf("%s holds no CA", dir)
	}
	own, err := tls.LoadX509KeyPair(filepath.Join(dir, "client.pem"), filepath.Join(dir, "client.key"))
	if err != nil {
		return credentials{}, err
	}
	client := &tls.Config{RootCAs: trusted, Certificates: []tls.Certificate{own}, ServerName: "127.0.0.1"}
	return credentials{dir: dir, client: client}, nil
}

func (c credentials) scheme() string {
	if c.client == nil {
		return "http"
	}
	return "https"
}

// flags make a server demand certificates. With --client-cert-auth etcd also writes the name in a client's certificate
// into every entry, where it takes from the room of a request; so the largest requests would be smaller than Orlop's.
func (c credentials) flags() []string {
	if c.client == nil {
		return nil
	}
	file := func(name string) string { return filepath.Join(c.dir, name) }
	return []string{"--cert-file", file("server.pem"), "--key-file", file("server.key"),
		"--trusted-ca-file", file("ca.pem")}
}

// dial connects as a client with these credentials.
func (c credentials) dial(port int) (net.Conn, error) {
	address := fmt.Sprintf("127.0.0.1:%d", port)
	if c.client == nil {
		return net.Dial("tcp", address)
	}
	return tls.Dial("tcp", address, c.client)
}

// checkDoor checks that a server with TLS answers those with a certificate, and nobody else.
func checkDoor(s *server) error {
	if s.credentials.client == nil {
		return nil
	}
	stranger := s.credentials
	stranger.client = s.credentials.client.Clone()
	stranger.client.Certificates = nil
	for _, who := range []struct {
		name string
		credentials
		isLetIn bool
	}{
		{"with a certificate", s.credentials, true},
		{"without a certificate", stranger, false},
		{"without TLS", credentials{}, false},
	} {
		answer, err := who.health(s.port)
		if isAnswered := strings.HasPrefix(answer, "HTTP/1.1 200 OK"); isAnswered != who.isLetIn {
			return fmt.Errorf("%s: a client %s gets %.200q (%v)", s.name, who.name, answer, err)
		}
	}
	return nil
}

// health is what a server answers to a request for /health, which may be nothing.
func (c credentials) health(port int) (string, error) {
	conn, err := c.dial(port)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(callTimeout)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, "GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(conn)
	return string(answer), err
}
