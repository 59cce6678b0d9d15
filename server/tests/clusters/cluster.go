package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// cluster is its members, and the network between them.
type cluster struct {
	dir     string
	network *network
	// What each program is given beside its names and addresses, and what both are.
	etcdFlags, orlopFlags, bothFlags []string
	// Changed by one alone, who holds the mutex for it; others look at what current gives them.
	members []*member
	mutex   sync.Mutex
	// Members that came later: each has a name and an address that nobody had before.
	made   int
	subnet string
}

// alike are so many members of one binary.
func alike(binary string, size int) []string { return slices.Repeat([]string{binary}, size) }

// newCluster makes members of these binaries that do not run yet. The directory is the caller's.
func newCluster(binaries []string, dir string) (*cluster, error) {
	c := &cluster{dir: dir, network: newNetwork(), subnet: ownSubnet()}
	for _, binary := range binaries {
		m, err := c.newMember(binary)
		if err != nil {
			return nil, err
		}
		c.members = append(c.members, m)
		c.network.add(m.advertisedURL, m.peerURL, m)
	}
	c.introduceAll()
	return c, nil
}

// newMember makes one that nobody knows yet, with a proxy's address.
func (c *cluster) newMember(binary string) (*member, error) {
	c.made++
	ports, err := freePorts(c.subnet+fmt.Sprint(c.made), 3)
	if err != nil {
		return nil, err
	}
	client, peer, advertised := "http://"+ports[0], "http://"+ports[1], "http://"+ports[2]
	return newMember(fmt.Sprintf("m%d", c.made), binary, c.dir, client, peer, advertised)
}

// current are the members of this moment, for those who do not change them.
func (c *cluster) current() []*member {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return slices.Clone(c.members)
}

func (c *cluster) admit(m *member) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.members = append(c.members, m)
}

func (c *cluster) dismiss(m *member) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.members = slices.DeleteFunc(c.members, func(each *member) bool { return each == m })
	close(m.gone)
}

func (c *cluster) introduceAll() {
	for _, m := range c.members {
		m.introduce(c.members, "new", c.dir)
	}
}

// introduce sets the flags by which a member knows itself and the others.
func (m *member) introduce(members []*member, state, token string) {
	var initial []string
	for _, each := range members {
		initial = append(initial, each.name+"="+each.advertisedURL)
	}
	m.flags = []string{
		"--name", m.name, "--data-dir", m.data(),
		"--listen-client-urls", m.clientURL, "--advertise-client-urls", m.clientURL,
		"--listen-peer-urls", m.peerURL, "--initial-advertise-peer-urls", m.advertisedURL,
		"--initial-cluster", strings.Join(initial, ","), "--initial-cluster-state", state,
		"--initial-cluster-token", filepath.Base(token),
	}
}

// dialDirectly has members that were never started tell each other where they listen themselves. No fault meets what
// they say.
func (c *cluster) dialDirectly() {
	for _, m := range c.members {
		m.advertisedURL = m.peerURL
	}
	c.network.proxies = nil
	c.introduceAll()
}

// another is some member that is not this one.
func (c *cluster) another(i int) int { return (i + 1 + rand.IntN(c.size()-1)) % c.size() }

func (c *cluster) size() int { return len(c.members) }

// ownSubnet is one of loopback addresses of our own: ports that others take elsewhere are free there. It is drawn
// without the seed: two runs of one seed may run side by side.
func ownSubnet() string { return fmt.Sprintf("127.%d.%d.", 1+rand.IntN(250), rand.IntN(256)) }

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
	if proxy := c.proxy(i); proxy != nil {
		if err := proxy.listen(); err != nil {
			return err
		}
	}
	return c.members[i].start()
}

// end ends a member. Its port refuses from then on, as the kernel of a dead process does.
func (c *cluster) end(i int, signal syscall.Signal) error {
	proxy := c.proxy(i)
	if proxy == nil {
		return c.members[i].end(signal)
	}
	if signal == syscall.SIGKILL {
		proxy.close()
	}
	err := c.members[i].end(signal)
	proxy.close()
	return err
}

// proxy is nil where members dial each other directly.
func (c *cluster) proxy(i int) *proxy {
	if len(c.network.proxies) == 0 {
		return nil
	}
	return c.network.proxies[i]
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
			if position, isHere := ids[id]; isHere && count > c.size()/2 {
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
	c.etcdFlags, c.orlopFlags, c.bothFlags = etcd, orlop, both
	for _, m := range c.members {
		c.flag(m)
	}
}

func (c *cluster) flag(m *member) {
	flags := c.etcdFlags
	if m.isOrlop {
		flags = c.orlopFlags
	}
	m.flags = slices.Concat(m.flags, flags, c.bothFlags)
}

// discard ends all that was started.
func (c *cluster) discard() {
	c.network.discard()
	for _, m := range c.members {
		m.discard()
	}
}
