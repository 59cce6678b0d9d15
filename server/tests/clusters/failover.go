package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// While the leader is away, a put is called so often, whether or not those before it were answered.
const probeEvery = 10 * time.Millisecond

// measureFailover prints how long it takes from the end of a leader, or from its silence, to the next acknowledged put
// of a client of another member. It judges nothing.
func measureFailover(ctx context.Context, opt options, times int) error {
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP} {
		for _, program := range []struct{ name, binary string }{{"etcd", opt.etcd}, {"Orlop", opt.orlop}} {
			if program.binary == "" {
				continue
			}
			took, err := failovers(ctx, program.binary, opt.dataDir, signal, times)
			if err != nil {
				return fmt.Errorf("%s: %w", program.name, err)
			}
			slices.Sort(took)
			fmt.Printf("%-5s  %v of the leader, %d times: median %4d ms, worst %4d ms, best %4d ms\n", program.name,
				signalName(signal), times, took[len(took)/2].Milliseconds(), took[len(took)-1].Milliseconds(),
				took[0].Milliseconds())
		}
	}
	return nil
}

func signalName(signal syscall.Signal) string {
	if signal == syscall.SIGKILL {
		return "SIGKILL"
	}
	return "SIGSTOP"
}

func failovers(
	ctx context.Context, binary, parent string, signal syscall.Signal, times int,
) ([]time.Duration, error) {
	dir, err := os.MkdirTemp(parent, "clusters-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	c, err := newCluster(alike(binary, 3), dir)
	if err != nil {
		return nil, err
	}
	defer c.discard()
	if err := c.startAll(ctx); err != nil {
		return nil, err
	}
	var took []time.Duration
	for range times {
		// All links are up again, and the member that was away has caught up.
		if _, err := agree(ctx, c); err != nil {
			return nil, err
		}
		pause(ctx, 2*time.Second)
		leader, err := c.leader(ctx)
		if err != nil {
			return nil, err
		}
		other := c.another(leader)
		// Its connection is there before it counts.
		if err := c.members[other].answers(ctx); err != nil {
			return nil, err
		}
		began := time.Now()
		if signal == syscall.SIGKILL {
			err = c.end(leader, signal)
		} else {
			err = c.members[leader].signal(signal)
		}
		if err == nil {
			err = nextPut(ctx, c.members[other])
		}
		if err != nil {
			return nil, err
		}
		took = append(took, time.Since(began))
		if signal == syscall.SIGKILL {
			err = c.start(leader)
		} else {
			err = c.members[leader].signal(syscall.SIGCONT)
		}
		if err != nil {
			return nil, err
		}
		if err := c.allAnswer(ctx); err != nil {
			return nil, err
		}
	}
	return took, nil
}

// nextPut returns when one of the puts that it calls is acknowledged.
func nextPut(ctx context.Context, m *member) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	var calls sync.WaitGroup
	defer calls.Wait()
	defer cancel()
	acknowledged := make(chan struct{}, 1)
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		calls.Go(func() {
			call, cancel := context.WithTimeout(ctx, callTimeout)
			defer cancel()
			if _, err := m.client.Put(call, "failover", ""); err == nil {
				select {
				case acknowledged <- struct{}{}:
				default:
				}
			}
		})
		select {
		case <-acknowledged:
			return nil
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%s acknowledges no put", m.name), ctx.Err())
		case <-tick.C:
		}
	}
}
