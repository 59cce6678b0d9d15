package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// How long a member may take for what is waited for. Far more than any needs: others use the machine, too.
const patience = 90 * time.Second

// member is one server process. Its data directory and addresses outlive a kill.
type member struct {
	name    string
	binary  string
	isOrlop bool
	flags   []string
	dir     string
	// What clients dial, what the process listens on for other members, and what it tells them to dial: the proxy.
	clientURL, peerURL, advertisedURL string
	client                            *clientv3.Client
	logFile                           *os.File
	// Where the log ended when it was marked.
	marked int64
	// Closed when it is no member any more.
	gone chan struct{}

	mutex  sync.Mutex
	child  *exec.Cmd
	exited chan struct{}
	// An end that nobody asked for is a failure, whatever the scenario.
	endWasWanted bool
}

func newMember(name, binary, parent, clientURL, peerURL, advertisedURL string) (*member, error) {
	m := &member{
		name: name, binary: binary, dir: filepath.Join(parent, name),
		clientURL: clientURL, peerURL: peerURL, advertisedURL: advertisedURL, gone: make(chan struct{}),
	}
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return nil, err
	}
	var err error
	if m.isOrlop, err = isOrlop(binary); err != nil {
		return nil, err
	}
	m.logFile, err = os.OpenFile(filepath.Join(parent, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	m.client, err = newClient(clientURL)
	return m, err
}

// newClient speaks to these members, usually to one alone, so that what it is told is known to come from that one.
func newClient(urls ...string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints:   urls,
		DialTimeout: 5 * time.Second,
		Logger:      zap.NewNop(),
		// What is tried again behind our back is recorded as one operation, so it should end soon.
		MaxUnaryRetries: 1,
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{
				BaseDelay: 50 * time.Millisecond, Multiplier: 1.5, MaxDelay: 400 * time.Millisecond,
			},
			MinConnectTimeout: 2 * time.Second,
		})},
	})
}

func (m *member) isGone() bool { return hasClosed(m.gone) }

func (m *member) data() string { return filepath.Join(m.dir, "data") }

// start starts the process and does not wait for its answers: those of a cluster come when a majority is there.
func (m *member) start() error {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	child := exec.Command(m.binary, m.flags...)
	child.Stdout, child.Stderr = m.logFile, m.logFile
	// A harness that dies must not leave servers behind.
	child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := child.Start(); err != nil {
		return fmt.Errorf("%s: %w", m.name, err)
	}
	exited := make(chan struct{})
	m.child, m.exited, m.endWasWanted = child, exited, false
	go func() {
		// How it ended is read from the child's state, where it matters.
		child.Wait()
		close(exited)
	}()
	return nil
}

// pid is 0 while no process runs.
func (m *member) pid() int {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if m.child == nil || hasClosed(m.exited) {
		return 0
	}
	return m.child.Process.Pid
}

func hasClosed(channel <-chan struct{}) bool {
	select {
	case <-channel:
		return true
	default:
		return false
	}
}

func (m *member) signal(signal syscall.Signal) error {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if m.child == nil {
		return fmt.Errorf("%s does not run", m.name)
	}
	return m.child.Process.Signal(signal)
}

// end ends the process with this signal, and returns when it is gone.
func (m *member) end(signal syscall.Signal) error {
	m.mutex.Lock()
	child, exited := m.child, m.exited
	m.endWasWanted = true
	m.mutex.Unlock()
	if child == nil {
		return nil
	}
	if hasClosed(exited) {
		return m.unexpectedEnd()
	}
	if err := child.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-exited:
	case <-time.After(patience):
		child.Process.Kill()
		return fmt.Errorf("%s runs %v after %v\n%s", m.name, patience, signal, m.logTail())
	}
	m.mutex.Lock()
	m.child = nil
	m.mutex.Unlock()
	return nil
}

// diedUnasked is an error if the process has ended and nobody ended it.
func (m *member) diedUnasked() error {
	m.mutex.Lock()
	died := m.child != nil && !m.endWasWanted && hasClosed(m.exited)
	m.mutex.Unlock()
	if died {
		return m.unexpectedEnd()
	}
	return nil
}

func (m *member) unexpectedEnd() error {
	return fmt.Errorf("%s ended by itself (%v)\n%s", m.name, m.child.ProcessState, m.logTail())
}

func (m *member) discard() {
	m.mutex.Lock()
	child, exited := m.child, m.exited
	m.endWasWanted = true
	m.mutex.Unlock()
	if child != nil {
		child.Process.Kill()
		<-exited
	}
	m.client.Close()
	m.logFile.Close()
}

// mark has says look only at what the log gets from here on.
func (m *member) mark() {
	m.marked, _ = m.logFile.Seek(0, io.SeekEnd)
}

// says returns when one of these texts is in the log behind the mark.
func (m *member) says(ctx context.Context, texts ...string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return poll(ctx, func(context.Context) error {
		isThere, err := m.said(texts...)
		if err != nil {
			return final{err}
		}
		if !isThere {
			return fmt.Errorf("%s's log has none of %q", m.name, texts)
		}
		return nil
	})
}

// said is whether one of these texts is in the log behind the mark by now.
func (m *member) said(texts ...string) (bool, error) {
	log, err := os.ReadFile(m.logFile.Name())
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(texts, func(text string) bool {
		return bytes.Contains(log[m.marked:], []byte(text))
	}), nil
}

const logTailBytes = 4000

func (m *member) logTail() string {
	file, err := os.Open(m.logFile.Name())
	if err != nil {
		return err.Error()
	}
	defer file.Close()
	if end, err := file.Seek(0, io.SeekEnd); err == nil {
		file.Seek(max(0, end-logTailBytes), io.SeekStart)
	}
	tail, _ := io.ReadAll(file)
	return fmt.Sprintf("-- the end of %s's log:\n%s", m.name, tail)
}

// answers returns when the member has answered a linearizable read.
func (m *member) answers(ctx context.Context) error {
	return poll(ctx, func(ctx context.Context) error {
		if err := m.diedUnasked(); err != nil {
			return final{err}
		}
		_, err := m.client.Get(ctx, "health")
		if err != nil {
			return fmt.Errorf("%s does not answer: %w", m.name, err)
		}
		return nil
	})
}

// final ends a poll at once.
type final struct{ error }

const callTimeout = 5 * time.Second

// poll tries until there is no error, or the context ends: then the last error stands.
func poll(ctx context.Context, try func(context.Context) error) error {
	for {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		err := try(call)
		cancel()
		var last final
		if err == nil {
			return nil
		}
		if errors.As(err, &last) {
			return last.error
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (and time is up)", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// freePorts are outside the range from which the kernel takes ports for outgoing connections, so that none is taken
// while the process that should listen there is dead.
func freePorts(address string, count int) ([]string, error) {
	var ports []string
	var held []net.Listener
	defer func() {
		for _, listener := range held {
			listener.Close()
		}
	}()
	for port := 20000 + os.Getpid()%10000; len(ports) < count; port++ {
		if port > 32000 {
			return nil, fmt.Errorf("no free ports at %s", address)
		}
		at := net.JoinHostPort(address, fmt.Sprint(port))
		if listener, err := net.Listen("tcp", at); err == nil {
			held = append(held, listener)
			ports = append(ports, at)
		}
	}
	return ports, nil
}

func isOrlop(binary string) (bool, error) {
	version, err := exec.Command(binary, "--version").Output()
	if err != nil {
		return false, fmt.Errorf("%s --version: %w", binary, err)
	}
	return strings.Contains(string(version), "Orlop Version"), nil
}
