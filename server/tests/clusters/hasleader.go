package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Watches of clients that know all members, as kube-apiserver's do.
const wanting = 6

// wish is a watch of all keys. Its client goes to another member by itself, so it ends for a reason alone: the cause of
// its context.
type wish struct {
	lives context.Context
	// The last revision that it was told of.
	told atomic.Int64
}

func (c *cluster) wishes(ctx context.Context, wantsLeader bool, urls ...string) (*wish, error) {
	client, err := newClient(urls...)
	if err != nil {
		return nil, err
	}
	ctx, end := context.WithCancelCause(ctx)
	w := &wish{lives: ctx}
	if wantsLeader {
		ctx = clientv3.WithRequireLeader(ctx)
	}
	go func() {
		defer client.Close()
		for answer := range client.Watch(ctx, "\x00", clientv3.WithFromKey()) {
			if err := answer.Err(); err != nil {
				end(err)
				return
			}
			w.told.Store(answer.Header.Revision)
		}
		end(errors.New("its channel is closed"))
	}()
	return w, nil
}

// ends is why the watch ends; it is waited for.
func (w *wish) ends() error {
	select {
	case <-w.lives.Done():
		return context.Cause(w.lives)
	case <-time.After(patience):
		return errors.New("it goes on")
	}
}

// hears is an error if the watch has ended, or is not told of what changes from now on.
func (w *wish) hears(m *member) error {
	ctx, cancel := context.WithTimeout(w.lives, patience)
	defer cancel()
	answer, err := m.client.Get(ctx, "any")
	if err == nil {
		err = poll(ctx, func(context.Context) error {
			if told := w.told.Load(); told <= answer.Header.Revision {
				return fmt.Errorf("a watch was told of %d, and %s is at %d", told, m.name, answer.Header.Revision)
			}
			return nil
		})
	}
	if w.lives.Err() != nil {
		return fmt.Errorf("a watch ended: %w", context.Cause(w.lives))
	}
	return err
}

// hasLeader looks at streams whose clients want a leader. They outlive a leader that dies, and end at a member that
// knows none for three election timeouts.
func hasLeader(ctx context.Context, t *trouble) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := t.outlivesLeaders(ctx); err != nil {
		return err
	}
	return t.endsApart(ctx)
}

// Streams go on at another member while the next leader is elected.
func (t *trouble) outlivesLeaders(ctx context.Context) error {
	var urls []string
	for _, m := range t.members {
		urls = append(urls, m.clientURL)
	}
	var all []*wish
	for range wanting {
		w, err := t.wishes(ctx, true, urls...)
		if err != nil {
			return err
		}
		all = append(all, w)
	}
	for range 3 * t.rounds {
		for _, w := range all {
			if err := w.hears(t.members[0]); err != nil {
				return err
			}
		}
		leader, err := t.leader(ctx)
		if err != nil {
			return err
		}
		if err := t.killed(ctx, leader); err != nil {
			return err
		}
	}
	for _, w := range all {
		if err := w.hears(t.members[0]); err != nil {
			return err
		}
	}
	return nil
}

// A member that is cut off ends the streams of those who mind.
func (t *trouble) endsApart(ctx context.Context) error {
	i, err := t.follower(ctx)
	if err != nil {
		return err
	}
	m := t.members[i]
	bound, err := t.wishes(ctx, true, m.clientURL)
	if err != nil {
		return err
	}
	loose, err := t.wishes(ctx, false, m.clientURL)
	if err != nil {
		return err
	}
	for _, w := range []*wish{bound, loose} {
		if err := w.hears(m); err != nil {
			return err
		}
	}
	t.say("%s is cut off", m.name)
	for other := range t.size() {
		if other != i {
			t.network.both(i, other, silence)
		}
	}
	began := time.Now()
	if err := bound.ends(); !errors.Is(err, rpctypes.ErrNoLeader) {
		return fmt.Errorf("a watch that wants a leader: %w", err)
	}
	took := time.Since(began)
	t.say("its watch ended after %v", took.Round(1e6))
	// Three looks without a leader, one in each election timeout of a second, behind the leader's loss.
	if took < 2*time.Second {
		return fmt.Errorf("it ended after %v", took)
	}
	late, err := t.wishes(ctx, true, m.clientURL)
	if err != nil {
		return err
	}
	if err := late.ends(); !errors.Is(err, rpctypes.ErrNoLeader) {
		return fmt.Errorf("a watch that wants a leader is not refused: %w", err)
	}
	t.say("healed")
	t.network.heal()
	if err := t.allAnswer(ctx); err != nil {
		return err
	}
	return loose.hears(m)
}
