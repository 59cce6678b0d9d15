package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	transport "google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	// Small, so that "too large" and fragments of watch responses are cheap to reach.
	maxRequestBytes = 64 << 10
	maxTxnOps       = 128
	quotaBytes      = 8 << 30
	startTimeout    = 60 * time.Second
)

// server is one child process and the connection to it. The data directory and the ports outlive a kill.
type server struct {
	name   string
	binary string
	flags  []string
	dir    string
	port   int
	// The URL that the member tells other members; its id follows from it.
	peer    string
	child   *exec.Cmd
	exited  chan struct{}
	logFile *os.File
	conn    *grpc.ClientConn
	// What clients show, and what the server demands of them.
	credentials credentials
}

func newServer(name, binary, flags, parent string, credentials credentials) (*server, error) {
	dir, err := os.MkdirTemp(parent, "differential-"+name+"-")
	if err != nil {
		return nil, err
	}
	s := &server{name: name, binary: binary, dir: dir, credentials: credentials}
	// Two listeners at once, so that the ports differ.
	var ports [2]int
	var listeners [2]net.Listener
	for i := range ports {
		if listeners[i], err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return nil, err
		}
		ports[i] = listeners[i].Addr().(*net.TCPAddr).Port
	}
	for _, listener := range listeners {
		listener.Close()
	}
	s.port = ports[0]
	client, peer := s.url(), "http://127.0.0.1:"+strconv.Itoa(ports[1])
	s.peer = peer
	s.flags = append([]string{
		"--name", "m1", "--data-dir", s.data(), "--log-level", "error",
		"--quota-backend-bytes", strconv.Itoa(quotaBytes), "--max-request-bytes", strconv.Itoa(maxRequestBytes),
		"--max-txn-ops", strconv.Itoa(maxTxnOps),
		"--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer,
		"--initial-advertise-peer-urls", peer, "--initial-cluster", "m1=" + peer,
	}, append(credentials.flags(), strings.Fields(flags)...)...)
	s.logFile, err = os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	security := insecure.NewCredentials()
	if credentials.client != nil {
		security = transport.NewTLS(credentials.client)
	}
	s.conn, err = grpc.NewClient("passthrough:///127.0.0.1:"+strconv.Itoa(s.port),
		grpc.WithTransportCredentials(security),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{
				BaseDelay:  20 * time.Millisecond,
				Multiplier: 1.2,
				MaxDelay:   200 * time.Millisecond,
			},
			MinConnectTimeout: time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30), grpc.MaxCallSendMsgSize(1<<30)))
	return s, err
}

func (s *server) data() string { return filepath.Join(s.dir, "member") }

func (s *server) url() string { return s.credentials.scheme() + "://127.0.0.1:" + strconv.Itoa(s.port) }

// start returns when the server answers a linearizable read and has its final storage version: etcd takes some seconds
// for that after it has made a new data directory.
func (s *server) start() error {
	return errors.Join(s.launch(), s.await())
}

func (s *server) launch() error {
	s.child = exec.Command(s.binary, s.flags...)
	s.child.Stdout, s.child.Stderr = s.logFile, s.logFile
	// A harness that dies must not leave servers behind.
	s.child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.child.Start(); err != nil {
		s.child = nil
		return fmt.Errorf("%s: %w", s.name, err)
	}
	exited := make(chan struct{})
	s.exited = exited
	child := s.child
	go func() {
		child.Wait()
		close(exited)
	}()
	return nil
}

func (s *server) await() error {
	if s.child == nil {
		return nil
	}
	exited, began := s.exited, time.Now()
	for {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_, err := pb.NewKVClient(s.conn).Range(ctx, &pb.RangeRequest{Key: []byte("health")})
		if err == nil {
			var status *pb.StatusResponse
			status, err = pb.NewMaintenanceClient(s.conn).Status(ctx, &pb.StatusRequest{})
			if err == nil && status.StorageVersion == "3.5.0" {
				err = errors.New("its storage version is not decided")
			}
		}
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-exited:
			return fmt.Errorf("%s stopped while starting:\n%s", s.name, s.logTail())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Since(began) > startTimeout {
			return fmt.Errorf("%s does not answer %v after its start: %v\n%s", s.name, startTimeout, err, s.logTail())
		}
	}
}

// stop sends the signal and waits until the process has ended. It is an error if that takes too long.
func (s *server) stop(signal syscall.Signal) error {
	if s.child == nil {
		return nil
	}
	select {
	case <-s.exited:
		return fmt.Errorf("%s stopped by itself (%v):\n%s", s.name, s.child.ProcessState, s.logTail())
	default:
	}
	if err := s.child.Process.Signal(signal); err != nil {
		return err
	}
	select {
	case <-s.exited:
		s.child = nil
		return nil
	case <-time.After(30 * time.Second):
		s.child.Process.Kill()
		return fmt.Errorf("%s runs 30 s after %v:\n%s", s.name, signal, s.logTail())
	}
}

// hasDied says whether the process has ended unasked.
func (s *server) hasDied() bool {
	if s.child == nil {
		return false
	}
	select {
	case <-s.exited:
		return true
	case <-time.After(100 * time.Millisecond):
		return false
	}
}

// discard ends the process and removes its data.
func (s *server) discard() {
	if s.child != nil {
		s.child.Process.Kill()
		<-s.exited
	}
	s.conn.Close()
	s.logFile.Close()
	os.RemoveAll(s.dir)
}

func (s *server) logTail() string {
	log, _ := os.ReadFile(filepath.Join(s.dir, "log"))
	return string(log[max(0, len(log)-6000):])
}
