package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const size = 3

// cluster is three members, and the network between them.
type cluster struct {
	members []*member
	network *network
}

// alike are three members of one binary.
func alike(binary string) [size]string { return [size]string{binary, binary, binary} }

// newCluster makes three members of these binaries that do not run yet. The directory is the caller's.
func newCluster(binaries [size]string, dir string) (*cluster, error) {
	c := &cluster{network: newNetwork()}
	// Loopback addresses of our own: ports that others take elsewhere are free here.
	addresses := ownAddresses()
	for i, address := range addresses {
		ports, err := freePorts(address, 3)
		if err != nil {
			return nil, err
		}
		name := fmt.Sprintf("m%d", i+1)
		client, peer, advertised := "http://"+ports[0], "http://"+ports[1], "http://"+ports[2]
		m, err := newMember(name, binaries[i], dir, client, peer, advertised)
		if err != nil {
			return nil, err
		}
		c.members = append(c.members, m)
		c.network.add(ports[2], ports[1], m)
	}
	c.introduceAll()
	return c, nil
}

func (c *cluster) introduceAll() {
	for _, m := range c.members {
		m.introduce(c.members)
	}
}

// introduce sets the flags by which a member knows itself and the others.
func (m *member) introduce(members []*member) {
	var initial []string
	for _, each := range members {
		initial = append(initial, each.name+"="+each.advertisedURL)
	}
	m.flags = []string{
		"--name", m.name, "--data-dir", m.data(),
		"--listen-client-urls", m.clientURL, "--advertise-client-urls", m.clientURL,
		"--listen-peer-urls", m.peerURL, "--initial-advertise-peer-urls", m.advertisedURL,
		"--initial-cluster", strings.Join(initial, ","),
		"--initial-cluster-token", filepath.Base(filepath.Dir(m.dir)),
	}
}

// dialDirectly has members that were never started tell each other where they listen themselves. No fault meets what
// they say.
func (c *cluster) dialDirectly() {
	for _, m := range c.members {
		m.advertisedURL = m.peerURL
	}
	c.introduceAll()
}

// another is some member that is not this one.
func another(i int) int { return (i + 1 + rand.IntN(size-1)) % size }

// ownAddresses are drawn without the seed: two runs of one seed may run side by side.
func ownAddresses() []string {
	network := fmt.Sprintf("127.%d.%d.", 1+rand.IntN(250), rand.IntN(256))
	var addresses []string
	for i := range size {
		addresses = append(addresses, network+fmt.Sprint(i+1))
	}
	return addresses
}

// startAll returns when every member has answered.
func (c *cluster) startAll(ctx context.Context) error {
	for i := range c.members {
		if err := c.start(i); err != nil {
			return err
		}
	}
	return c.allAnswer(ctx)
}

func (c *cluster) allAnswer(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, m := range c.members {
		if err := m.answers(ctx); err != nil {
			return fmt.Errorf("%w\n%s", err, m.logTail())
		}
	}
	return nil
}

func (c *cluster) start(i int) error {
	if err := c.network.proxies[i].listen(); err != nil {
		return err
	}
	return c.members[i].start()
}

// end ends a member. Its port refuses from then on, as the kernel of a dead process does.
func (c *cluster) end(i int, signal syscall.Signal) error {
	if signal == syscall.SIGKILL {
		c.network.proxies[i].close()
	}
	err := c.members[i].end(signal)
	c.network.proxies[i].close()
	return err
}

// leader is the member that most others call leader.
func (c *cluster) leader(ctx context.Context) (int, error) {
	found := -1
	err := poll(ctx, func(ctx context.Context) error {
		votes := map[uint64]int{}
		ids := map[uint64]int{}
		for i, m := range c.members {
			if m.pid() == 0 {
				continue
			}
			status, err := c.status(ctx, i)
			if err != nil {
				continue
			}
			ids[status.Header.MemberId] = i
			votes[status.Leader]++
		}
		for id, count := range votes {
			if position, isHere := ids[id]; isHere && count > size/2 {
				found = position
				return nil
			}
		}
		return errors.New("no leader that a majority knows")
	})
	return found, err
}

func (c *cluster) status(ctx context.Context, i int) (*clientv3.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return c.members[i].client.Status(ctx, c.members[i].clientURL)
}

// diedUnasked is an error if any process has ended and nobody ended it.
func (c *cluster) diedUnasked() error {
	var all []error
	for _, m := range c.members {
		all = append(all, m.diedUnasked())
	}
	return errors.Join(all...)
}

func (c *cluster) logTails() string {
	var all strings.Builder
	for _, m := range c.members {
		fmt.Fprintln(&all, m.logTail())
	}
	return all.String()
}

// addFlags has members start with more flags; each program has its own.
func (c *cluster) addFlags(etcd, orlop, both []string) {
	for _, m := range c.members {
		flags := etcd
		if m.isOrlop {
			flags = orlop
		}
		m.flags = append(append(m.flags, flags...), both...)
	}
}

// discard ends all that was started.
func (c *cluster) discard() {
	c.network.discard()
	for _, m := range c.members {
		m.discard()
	}
}
