package main

import (
	"context"
	"errors"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// At each so many revisions all members tell the same history and have the same hash.
	journalStep = 1000
	// So many revisions are kept behind that.
	revisionsKept = 500
)

// journal keeps the history of a run whose members compact: it reads each part of it from every voter before that is
// compacted, and demands that they agree.
type journal struct {
	cluster *cluster
	traffic *traffic
	// What was there before.
	earlier *history
	events  []event
	// Up to here all members have told the same, and up to here it was compacted.
	told, compacted     int64
	hashes, compactions int
	// Compares members that are no voters, at a revision that all voters have.
	beside func(context.Context, int64) error
}

func newJournal(c *cluster, t *traffic, earlier *history) *journal {
	j := &journal{cluster: c, traffic: t, earlier: earlier, told: earlier.last, compacted: t.floor - 1}
	t.journal = j
	return j
}

// run goes on until the context ends.
func (j *journal) run(ctx context.Context) error {
	for ctx.Err() == nil {
		next := (j.told/journalStep + 1) * journalStep
		revision, err := j.revision(ctx)
		switch {
		case err != nil || revision < next:
			pause(ctx, calm/4)
			continue
		default:
			err = j.step(ctx, next)
		}
		if err != nil && ctx.Err() == nil {
			return err
		}
	}
	return nil
}

// revision is that of any member that answers.
func (j *journal) revision(ctx context.Context) (int64, error) {
	var last error
	for _, m := range j.cluster.current() {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		answer, err := m.client.Get(call, "any", clientv3.WithSerializable())
		if cancel(); err == nil {
			return answer.Header.Revision, nil
		}
		last = err
	}
	return 0, last
}

// reaches waits until the store has come so far.
func (t *traffic) reaches(ctx context.Context, revision int64) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return poll(ctx, func(ctx context.Context) error {
		now, err := t.journal.revision(ctx)
		if err == nil && now < revision {
			err = fmt.Errorf("the store is at revision %d, not yet %d", now, revision)
		}
		return err
	})
}

func (j *journal) step(ctx context.Context, next int64) error {
	if err := j.advance(ctx, next); err != nil {
		return err
	}
	if err := j.compare(ctx, next); err != nil {
		return err
	}
	if j.beside != nil {
		if err := j.beside(ctx, next); err != nil {
			return err
		}
	}
	if err := j.compact(ctx); err != nil {
		return err
	}
	return j.cluster.withoutAlarm(ctx)
}

func (j *journal) advance(ctx context.Context, next int64) error {
	events, err := oneHistory(ctx, j.cluster, j.told+1, next)
	if err == nil {
		j.events, j.told = append(j.events, events...), next
	}
	return err
}

// compare demands that all members have one hash at a revision. One that is behind compacts later, and counts what was
// compacted as the others do from then on.
func (j *journal) compare(ctx context.Context, revision int64) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return poll(ctx, func(ctx context.Context) error {
		var all []*clientv3.HashKVResponse
		var names []string
		for _, m := range j.cluster.current() {
			hash, err := m.client.HashKV(ctx, m.clientURL, revision)
			if m.isGone() {
				continue
			}
			if err != nil {
				return fmt.Errorf("the hash of %s at revision %d: %w", m.name, revision, err)
			}
			all, names = append(all, hash), append(names, m.name)
		}
		for i, hash := range all {
			switch {
			case hash.CompactRevision != all[0].CompactRevision:
				return fmt.Errorf("%s is compacted at %d, and %s at %d", names[0], all[0].CompactRevision, names[i],
					hash.CompactRevision)
			case hash.Hash != all[0].Hash:
				return final{fmt.Errorf("at revision %d, compacted at %d, %s has the hash %d, and %s has %d", revision,
					hash.CompactRevision, names[0], all[0].Hash, names[i], hash.Hash)}
			}
		}
		j.hashes++
		return nil
	})
}

// compact drops what nobody will ask for.
func (j *journal) compact(ctx context.Context) error {
	until := j.traffic.compactable(j.told - revisionsKept)
	if until <= j.compacted {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := poll(ctx, func(ctx context.Context) error {
		var all []error
		for _, m := range j.cluster.current() {
			_, err := m.client.Compact(ctx, until)
			if err == nil || err.Error() == compactedAlready {
				return nil
			}
			all = append(all, err)
		}
		return errors.Join(all...)
	})
	if err == nil {
		j.compacted = until
		j.compactions++
	}
	return err
}

// A call without an answer may have done it.
const compactedAlready = "etcdserver: mvcc: required revision has been compacted"

// complete reads the rest, when nothing is written any more.
func (j *journal) complete(ctx context.Context, last int64) (*history, error) {
	if err := j.advance(ctx, last); err != nil {
		return nil, err
	}
	h, err := replayBehind(j.earlier, j.events)
	if err == nil {
		h.clients = j.traffic.number
	}
	return h, err
}

// withoutAlarm is an error if any member knows of an alarm. Who is away is asked the next time.
func (c *cluster) withoutAlarm(ctx context.Context) error {
	for _, m := range c.current() {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		answer, err := m.client.AlarmList(call)
		if cancel(); err == nil && len(answer.Alarms) > 0 {
			return fmt.Errorf("alarms of %s: %v", m.name, answer.Alarms)
		}
	}
	return nil
}
