package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"syscall"
	"time"
)

// leave measures the slowest put of a client of all members while leaders leave in an orderly way.
func leave(away func(*stand, context.Context, int) error) func(context.Context, *stand) (string, error) {
	return func(ctx context.Context, s *stand) (string, error) {
		var all tally
		var slowest []time.Duration
		for range leaveTimes {
			// The member that was away has caught up.
			if _, err := agree(ctx, s.cluster); err != nil {
				return "", err
			}
			pause(ctx, 2*time.Second)
			leader, err := s.leader(ctx)
			if err != nil {
				return "", err
			}
			loop, err := startLoop(ctx, s.members[0].clientURL, s.members[1].clientURL, s.members[2].clientURL)
			if err != nil {
				return "", err
			}
			pause(ctx, time.Second)
			if err = away(s, ctx, leader); err == nil {
				err = s.allAnswer(ctx)
			}
			pause(ctx, time.Second)
			once := loop.stop()
			if err != nil {
				return "", err
			}
			slowest = append(slowest, max(once.slowest, once.slowestError))
			all.add(once)
		}
		slices.Sort(slowest)
		return fmt.Sprintf("%v; in half of the %d times none took over %d ms", all, leaveTimes,
			slowest[(len(slowest)-1)/2].Milliseconds()), nil
	}
}

func (s *stand) restartLeader(_ context.Context, leader int) error {
	if err := s.end(leader, syscall.SIGTERM); err != nil {
		return err
	}
	return s.start(leader)
}

func (s *stand) moveLeader(ctx context.Context, leader int) error {
	status, err := s.status(ctx, s.another(leader))
	if err != nil {
		return err
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err = s.members[leader].client.MoveLeader(call, status.Header.MemberId)
	return err
}

// back measures how long a follower needs for what it has missed.
func back(ctx context.Context, s *stand) (string, error) {
	leader, err := s.leader(ctx)
	if err != nil {
		return "", err
	}
	follower := s.another(leader)
	if err := s.end(follower, syscall.SIGTERM); err != nil {
		return "", err
	}
	missed, err := s.bench(ctx, "put", []string{s.members[leader].clientURL}, "--clients", fmt.Sprint(clients),
		"--total", fmt.Sprint(missedPuts), "--key-space-size", fmt.Sprint(missedPuts), "--val-size", "100")
	if err != nil {
		return "", err
	}
	status, err := s.status(ctx, leader)
	if err != nil {
		return "", err
	}
	m := s.members[follower]
	m.mark()
	began := time.Now()
	if err := s.start(follower); err != nil {
		return "", err
	}
	if err := m.applies(ctx, fixed(status.RaftIndex)); err != nil {
		return "", err
	}
	took := time.Since(began)
	way, err := m.way()
	return fmt.Sprintf("%.2f s %s, after %d puts", took.Seconds(), way, missed.answered()), err
}

// paused measures what a leader at full load needs for a follower that is silent, or for itself.
func paused(isOne bool) func(context.Context, *stand) (string, error) {
	return func(ctx context.Context, s *stand) (string, error) {
		leader, err := s.leader(ctx)
		if err != nil {
			return "", err
		}
		at := s.members[leader]
		type outcome struct {
			load
			error
		}
		ended := make(chan outcome, 1)
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		go func() {
			done, err := s.bench(ctx, "put", []string{at.clientURL}, "--clients", fmt.Sprint(clients),
				"--duration", fmt.Sprintf("%ds", int((warmUp+s.opt.pause).Seconds())))
			ended <- outcome{done, err}
		}()
		pause(ctx, warmUp)
		before, err := at.memory("VmRSS")
		if err != nil {
			return "", err
		}
		highest := watchMemory(ctx, at)
		silent := s.members[s.another(leader)]
		if isOne {
			if err := silent.signal(syscall.SIGSTOP); err != nil {
				return "", err
			}
		}
		done := <-ended
		peak := highest()
		if isOne {
			if err := silent.signal(syscall.SIGCONT); err != nil {
				return "", err
			}
		}
		if done.error != nil {
			return "", done.error
		}
		return fmt.Sprintf("leader %d MiB, at its highest %+d MiB, in %v; %v",
			before>>20, (peak-before)>>20, s.opt.pause, done.load), nil
	}
}

// join measures what it costs that much data goes to a new member, of the other program or of the same.
func join(isOther bool) func(context.Context, *stand) (string, error) {
	return func(ctx context.Context, s *stand) (string, error) { return joins(ctx, s, isOther) }
}

func joins(ctx context.Context, s *stand, isOther bool) (string, error) {
	leader, err := s.leader(ctx)
	if err != nil {
		return "", err
	}
	at, follower := s.members[leader], s.members[s.another(leader)]
	const valueBytes = 1000
	keys := fmt.Sprint(s.opt.joinMiB << 20 / valueBytes)
	if _, err := s.bench(ctx, "put", []string{at.clientURL}, "--clients", fmt.Sprint(clients), "--total", keys,
		"--key-space-size", keys, "--sequential-keys", "--val-size", fmt.Sprint(valueBytes)); err != nil {
		return "", err
	}
	if err := s.level(ctx); err != nil {
		return "", err
	}
	loop, err := startLoop(ctx, at.clientURL)
	if err != nil {
		return "", err
	}
	defer loop.stop()
	pause(ctx, warmUp)
	calm := loop.take()
	binary := at.binary
	if isOther {
		binary = s.opt.other(binary)
	}
	m, err := s.newLearner(ctx, at, binary)
	if err != nil {
		return "", err
	}
	defer m.discard()
	before, err := at.memory("VmRSS")
	if err != nil {
		return "", err
	}
	highest := watchMemory(ctx, at)
	began := time.Now()
	if err = m.start(); err == nil {
		err = s.overtakes(ctx, leader, m)
	}
	took, sender, meanwhile := time.Since(began), highest(), loop.take()
	if err != nil {
		return "", fmt.Errorf("%w\n%s", err, m.logTail())
	}
	receiver, err := m.memory("VmHWM")
	if err != nil {
		return "", err
	}
	same, err := follower.memory("VmRSS")
	if err != nil {
		return "", err
	}
	way, err := m.way()
	return fmt.Sprintf("%.2f s %s for %d MiB; meanwhile %v (%v before); sender %+d MiB, receiver %+d MiB",
		took.Seconds(), way, s.opt.joinMiB, meanwhile, calm, (sender-before)>>20, (receiver-same)>>20), err
}

// overtakes returns when a member has applied what the leader had in its log a moment ago, while that grows.
func (s *stand) overtakes(ctx context.Context, leader int, m *member) error {
	last := uint64(math.MaxUint64)
	return m.applies(ctx, func() (uint64, error) {
		wanted := last
		status, err := s.status(ctx, leader)
		if err == nil {
			last = status.RaftIndex
		}
		return wanted, err
	})
}

// way is how a member was given what it had missed, by its log behind the mark.
func (m *member) way() (string, error) {
	isSnapshot, err := m.said("applied snapshot")
	if err != nil {
		return "", err
	}
	if isSnapshot {
		return "by a snapshot", nil
	}
	return "by the log", nil
}
