package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// finish ends the traffic behind the last fault, and judges all of it. Liveness is part of that: writes go on through
// every member, watchers catch up, and members agree, each within our patience.
func finish(ctx context.Context, c *cluster, t *traffic) (*history, error) {
	if err := c.allAnswer(ctx); err != nil {
		return nil, fmt.Errorf("behind the last fault: %w", err)
	}
	if err := t.goesOn(ctx, func(int) bool { return true }); err != nil {
		return nil, fmt.Errorf("behind the last fault: %w", err)
	}
	t.stopClients()
	if err := endLeases(ctx, c, t.recorder); err != nil {
		return nil, err
	}
	last, err := agree(ctx, c)
	if err != nil {
		return nil, err
	}
	for _, p := range t.posts {
		for _, w := range p.watchers {
			if err := w.catchesUp(ctx, last); err != nil {
				return nil, err
			}
		}
	}
	t.stopWatchers()
	h, err := t.history(ctx, last)
	if err != nil {
		return nil, err
	}
	if err := checkKeys(ctx, c, h); err != nil {
		return nil, err
	}
	return h, errors.Join(checkAll(h, t.recorder), c.healthy(ctx), c.diedUnasked())
}

// endLeases demands that all members know the same leases, and that a key has a lease that is known; then it revokes
// them, and their keys go.
func endLeases(ctx context.Context, c *cluster, r *recorder) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	r.mutex.Lock()
	for _, story := range r.leases {
		story.wasRevoked = true
	}
	r.mutex.Unlock()
	// Leases run out meanwhile, so what is read in turn may differ at first.
	err := poll(ctx, func(ctx context.Context) error {
		var first []clientv3.LeaseStatus
		for i, m := range c.members {
			leases, err := m.client.Leases(ctx)
			if err != nil {
				return err
			}
			slices.SortFunc(leases.Leases, func(one, other clientv3.LeaseStatus) int { return int(one.ID - other.ID) })
			if i == 0 {
				first = leases.Leases
			} else if !slices.Equal(first, leases.Leases) {
				return fmt.Errorf("%s has leases %v, and %s has %v", c.members[0].name, first, m.name, leases.Leases)
			}
		}
		keys, err := c.members[0].client.Get(ctx, "lease/", clientv3.WithPrefix())
		if err != nil {
			return err
		}
		for _, kv := range keys.Kvs {
			is := func(l clientv3.LeaseStatus) bool { return l.ID == clientv3.LeaseID(kv.Lease) }
			if !slices.ContainsFunc(first, is) {
				return fmt.Errorf("%v has a lease that is not among %v", kv, first)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return poll(ctx, func(ctx context.Context) error {
		leases, err := c.members[0].client.Leases(ctx)
		if err != nil {
			return err
		}
		for i, lease := range leases.Leases {
			// The next round finds those that could not be revoked.
			c.members[i%len(c.members)].client.Revoke(ctx, lease.ID)
		}
		keys, err := c.members[0].client.Get(ctx, "lease/", clientv3.WithPrefix())
		if err == nil && len(keys.Kvs)+len(leases.Leases) > 0 {
			err = fmt.Errorf("keys %v outlive their leases %v", keys.Kvs, leases.Leases)
		}
		return err
	})
}

// agree returns when all members have one applied index, one revision and one hash there, twice with nothing between.
func agree(ctx context.Context, c *cluster) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	type standing struct {
		applied  uint64
		revision int64
		leader   uint64
	}
	var before, last standing
	err := poll(ctx, func(ctx context.Context) error {
		for i, m := range c.members {
			status, err := m.client.Status(ctx, m.clientURL)
			if err != nil {
				return fmt.Errorf("status of %s: %w", m.name, err)
			}
			if len(status.Errors) > 0 {
				return fmt.Errorf("status of %s: %v", m.name, status.Errors)
			}
			now := standing{status.RaftAppliedIndex, status.Header.Revision, status.Leader}
			if i > 0 && now != last {
				before = standing{}
				return fmt.Errorf("%s is at %+v, and %s at %+v", c.members[i-1].name, last, m.name, now)
			}
			last = now
		}
		if last != before {
			before = last
			return fmt.Errorf("all are at %+v for the first time", last)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	hashes := make([]string, len(c.members))
	for i, m := range c.members {
		// A member that has found damage says so until it is whole again.
		err := poll(ctx, func(ctx context.Context) error {
			hash, err := m.client.HashKV(ctx, m.clientURL, last.revision)
			if err != nil {
				return fmt.Errorf("the hash of %s: %w", m.name, err)
			}
			hashes[i] = fmt.Sprintf("%d, compacted at %d", hash.Hash, hash.CompactRevision)
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	if len(slices.Compact(slices.Clone(hashes))) > 1 {
		return 0, fmt.Errorf("the hashes at revision %d are %q", last.revision, hashes)
	}
	return last.revision, nil
}

// history is that of all members, up to this revision.
func (t *traffic) history(ctx context.Context, last int64) (*history, error) {
	var h *history
	var err error
	if t.journal != nil {
		h, err = t.journal.complete(ctx, last)
	} else {
		var events []event
		if events, err = oneHistory(ctx, t.cluster, 2, last); err == nil {
			h, err = replay(events)
		}
	}
	if err == nil && h.last != last {
		err = fmt.Errorf("the history ends at revision %d, not %d", h.last, last)
	}
	return h, err
}

// oneHistory reads what happened from one revision to another from every member, and demands that it is the same. One
// that is removed meanwhile is not waited for.
func oneHistory(ctx context.Context, c *cluster, first, last int64) ([]event, error) {
	var told []event
	var teller *member
	for _, m := range c.current() {
		events, err := readHistory(ctx, m, first, last)
		switch {
		case m.isGone():
			continue
		case err != nil:
			return nil, err
		case teller == nil:
			told, teller = events, m
			continue
		}
		for at := range min(len(told), len(events)) {
			if told[at] != events[at] {
				return nil, fmt.Errorf("event %d is %v at %s, and %v at %s", at, told[at], teller.name, events[at],
					m.name)
			}
		}
		if len(told) != len(events) {
			return nil, fmt.Errorf("%d events at %s, %d at %s", len(told), teller.name, len(events), m.name)
		}
	}
	return told, nil
}

// checkKeys reads all keys of each member, which must be what the history makes of them.
func checkKeys(ctx context.Context, c *cluster, h *history) error {
	for _, m := range c.members {
		call, cancel := context.WithTimeout(ctx, patience)
		all, err := m.client.Get(call, "\x00", clientv3.WithFromKey(), clientv3.WithSerializable())
		cancel()
		if err != nil {
			return fmt.Errorf("all keys of %s: %w", m.name, err)
		}
		found := map[string]version{}
		for _, v := range versionsOf(all.Kvs) {
			found[v.key] = v
		}
		for key := range h.versions {
			wanted, isThere := h.at(key, h.last)
			got, isFound := found[key]
			if isThere != isFound || got != wanted {
				return fmt.Errorf("%s has %v for %q, where the history has %v", m.name, got, key, wanted)
			}
			delete(found, key)
		}
		if len(found) > 0 {
			return fmt.Errorf("%s has keys that the history never had: %v", m.name, found)
		}
	}
	return nil
}

// healthy asks each member what `etcdctl endpoint health` asks, and its /health.
func (c *cluster) healthy(ctx context.Context) error {
	for _, m := range c.members {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		if _, err := m.client.Get(call, "health"); err != nil {
			return fmt.Errorf("%s is not healthy: %w", m.name, err)
		}
		alarms, err := m.client.AlarmList(call)
		if err != nil {
			return fmt.Errorf("alarms of %s: %w", m.name, err)
		}
		if len(alarms.Alarms) > 0 {
			return fmt.Errorf("alarms of %s: %v", m.name, alarms.Alarms)
		}
		request, err := http.NewRequestWithContext(call, http.MethodGet, m.clientURL+"/health", nil)
		if err != nil {
			return err
		}
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			return fmt.Errorf("/health of %s: %w", m.name, err)
		}
		body, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		var said struct{ Health string }
		if err != nil || json.Unmarshal(body, &said) != nil || said.Health != "true" {
			return fmt.Errorf("/health of %s says %q (%v)", m.name, body, err)
		}
	}
	return nil
}
