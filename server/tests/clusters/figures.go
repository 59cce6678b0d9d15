package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"
)

// figure is one thing that is measured, each time on a fresh cluster. Its members dial each other directly, unless
// the figure needs faults: proxies take CPU from the members.
type figure struct {
	name        string
	isByProxies bool
	// One member is of the program that is measured, and leads; the others are of the other one.
	isMixed bool
	measure func(context.Context, *stand) (string, error)
}

var figures = []figure{
	{name: "cpu/closed/leader", measure: putCPU(false, false)},
	{name: "cpu/closed/all", measure: putCPU(false, true)},
	{name: "cpu/open/leader", measure: putCPU(true, false)},
	{name: "cpu/open/all", measure: putCPU(true, true)},
	{name: "far", isByProxies: true, measure: far},
	{name: "gets", measure: getCPU},
	{name: "leave/sigterm", measure: leave((*stand).restartLeader)},
	{name: "leave/move", measure: leave((*stand).moveLeader)},
	{name: "back", measure: back},
	{name: "paused/none", measure: paused(false)},
	{name: "paused/one", measure: paused(true)},
	{name: "join", measure: join(false)},
	{name: "mixed/cpu/closed", isMixed: true, measure: putCPU(false, false)},
	{name: "mixed/cpu/open", isMixed: true, measure: putCPU(true, false)},
	{name: "mixed/join", measure: join(true)},
}

const (
	connections = 100
	clients     = 1000
	// Requests of a closed loop, and of one before it that does not count.
	loopRequests = 60_000
	warmRequests = 5_000
	// How often a leader leaves, and the puts a second of clients that should not notice.
	leaveTimes = 10
	calmRate   = 1000
	// What a follower misses.
	missedPuts = 200_000
	// A load runs for so long before what follows is compared with it.
	warmUp = 5 * time.Second
	// Stock etcd's default quota would end a long load.
	quotaBytes = "8589934592"
)

// stand is the cluster of one figure, and what the command line says of it.
type stand struct {
	*cluster
	opt options
	dir string
}

// measureFigures prints each figure that is chosen, of stock etcd and of Orlop in turns. It judges nothing.
func measureFigures(ctx context.Context, opt options) error {
	measured, failed := 0, 0
	for _, f := range figures {
		if !isChosen(f.name, opt.run) {
			continue
		}
		for _, program := range []struct{ name, binary string }{{"etcd", opt.etcd}, {"Orlop", opt.orlop}} {
			if program.binary == "" || ctx.Err() != nil {
				continue
			}
			measured++
			line, err := f.play(ctx, opt, program.binary)
			if err != nil {
				failed++
				line = fmt.Sprint("FAIL ", err)
			}
			fmt.Printf("%-17s  %-5s  %s\n", f.name, program.name, line)
		}
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case measured == 0:
		return fmt.Errorf("no figure has the name %q, or neither -etcd nor -orlop is there", opt.run)
	case failed > 0:
		return fmt.Errorf("%d of %d could not be measured", failed, measured)
	}
	return nil
}

func (f *figure) play(ctx context.Context, opt options, binary string) (string, error) {
	dir, err := os.MkdirTemp(opt.dataDir, "clusters-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	binaries := alike(binary, 3)
	if f.isMixed {
		binaries[1], binaries[2] = opt.other(binary), opt.other(binary)
	}
	c, err := newCluster(binaries, dir)
	if err != nil {
		return "", err
	}
	defer c.discard()
	if !f.isByProxies {
		c.dialDirectly()
	}
	c.addFlags(nil, nil, []string{"--quota-backend-bytes", quotaBytes})
	if err := c.startAll(ctx); err != nil {
		return "", err
	}
	if f.isMixed {
		if err := c.leadBy(ctx, 0); err != nil {
			return "", err
		}
	}
	before, err := c.term(ctx)
	if err != nil {
		return "", err
	}
	line, err := f.measure(ctx, &stand{cluster: c, opt: opt, dir: dir})
	if err == nil {
		err = c.diedUnasked()
	}
	if err != nil {
		return "", fmt.Errorf("%w\n%s", err, c.logTails())
	}
	// A host without enough CPU has elections where nobody asked for one, and its figures are of little use.
	if after, err := c.term(ctx); err != nil {
		return "", err
	} else if after != before {
		line += fmt.Sprintf("; %d terms began", after-before)
	}
	return line, nil
}

// other is the program that this one is measured beside.
func (opt options) other(binary string) string {
	if binary == opt.etcd {
		return opt.orlop
	}
	return opt.etcd
}

// term is the highest of any member.
func (c *cluster) term(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	highest := uint64(0)
	err := poll(ctx, func(ctx context.Context) error {
		for i := range c.members {
			status, err := c.status(ctx, i)
			if err != nil {
				return err
			}
			highest = max(highest, status.RaftTerm)
		}
		return nil
	})
	return highest, err
}

// level returns when every member has applied what the leader has in its log by now.
func (s *stand) level(ctx context.Context) error {
	leader, err := s.leader(ctx)
	if err != nil {
		return err
	}
	status, err := s.status(ctx, leader)
	if err != nil {
		return err
	}
	for _, m := range s.members {
		if err := m.applies(ctx, fixed(status.RaftIndex)); err != nil {
			return err
		}
	}
	return nil
}

func fixed(index uint64) func() (uint64, error) {
	return func() (uint64, error) { return index, nil }
}

// How long a member may take to apply what it has missed.
const catchUpPatience = 10 * time.Minute

// applies returns when the member has applied this index, which is asked for anew before each look at the member.
func (m *member) applies(ctx context.Context, index func() (uint64, error)) error {
	ctx, cancel := context.WithTimeout(ctx, catchUpPatience)
	defer cancel()
	for {
		if err := m.diedUnasked(); err != nil {
			return err
		}
		wanted, err := index()
		if err != nil {
			return err
		}
		call, cancel := context.WithTimeout(ctx, callTimeout)
		status, err := m.client.Status(call, m.clientURL)
		cancel()
		if err == nil {
			if status.RaftAppliedIndex >= wanted {
				return nil
			}
			err = fmt.Errorf("%s has applied %d of %d", m.name, status.RaftAppliedIndex, wanted)
		}
		if pause(ctx, 10*time.Millisecond); ctx.Err() != nil {
			return fmt.Errorf("%w (and time is up)", err)
		}
	}
}

// putCPU measures the CPU of all members for each put.
func putCPU(isOpen, isAtAll bool) func(context.Context, *stand) (string, error) {
	return func(ctx context.Context, s *stand) (string, error) {
		leader, err := s.leader(ctx)
		if err != nil {
			return "", err
		}
		endpoints := []string{s.members[leader].clientURL}
		if isAtAll {
			endpoints = nil
			for _, m := range s.members {
				endpoints = append(endpoints, m.clientURL)
			}
		}
		flags := []string{"--clients", fmt.Sprint(clients), "--total", fmt.Sprint(loopRequests)}
		if isOpen {
			flags = []string{"--rate", "10000", "--duration", "6s"}
		}
		return s.requestCPU(ctx, "put", endpoints, flags)
	}
}

// getCPU measures the CPU of all members for each linearizable get at one follower.
func getCPU(ctx context.Context, s *stand) (string, error) {
	leader, err := s.leader(ctx)
	if err != nil {
		return "", err
	}
	flags := []string{"--clients", fmt.Sprint(clients), "--total", fmt.Sprint(loopRequests)}
	return s.requestCPU(ctx, "range", []string{s.members[s.another(leader)].clientURL}, flags)
}

func (s *stand) requestCPU(ctx context.Context, command string, endpoints, flags []string) (string, error) {
	// The key that is read is there, and whatever a member does once is done.
	_, err := s.bench(ctx, "put", endpoints, "--clients", fmt.Sprint(clients), "--total", fmt.Sprint(warmRequests))
	if err != nil {
		return "", err
	}
	if err := s.level(ctx); err != nil {
		return "", err
	}
	before, err := s.cpuOfEach()
	if err != nil {
		return "", err
	}
	done, err := s.bench(ctx, command, endpoints, flags...)
	if err != nil {
		return "", err
	}
	if err := s.level(ctx); err != nil {
		return "", err
	}
	after, err := s.cpuOfEach()
	if err != nil {
		return "", err
	}
	all, shares := 0.0, []string(nil)
	for i := range after {
		each := float64((after[i] - before[i]).Microseconds()) / float64(done.answered())
		all, shares = all+each, append(shares, fmt.Sprintf("%.1f", each))
	}
	return fmt.Sprintf("%6.1f us of all members a %s (%s), %v", all, command, strings.Join(shares, ", "), done), nil
}

// far compares puts through near proxies and through far ones.
func far(ctx context.Context, s *stand) (string, error) {
	const delay = 5 * time.Millisecond
	// Each client waits for a round trip more: so many that the members have enough to do all the same.
	const farClients = 4 * clients
	var loads [2]load
	for i := range loads {
		if i == 1 {
			for one := range s.size() {
				for other := range one {
					s.network.both(one, other, func(f *fault) { f.delay = delay })
				}
			}
			pause(ctx, 2*time.Second)
		}
		leader, err := s.leader(ctx)
		if err != nil {
			return "", err
		}
		loads[i], err = s.bench(ctx, "put", []string{s.members[leader].clientURL},
			"--clients", fmt.Sprint(farClients), "--duration", "6s")
		if err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%.2f of the puts with %v each way: %v; without: %v",
		loads[1].perSecond()/loads[0].perSecond(), delay, loads[1], loads[0]), nil
}
