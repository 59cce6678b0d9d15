package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// All that clients saw is judged, and forgotten, as often as this.
	besidePart = time.Minute
	// A learner that has caught up stays at most so many entries behind the leader. (etcd's members refuse requests
	// when they have more to apply.)
	lagMost = 5000
)

// beside is an Orlop learner beside a stock cluster.
type beside struct {
	*cluster
	opt     options
	random  *rand.Rand
	traffic *traffic
	learner *member
	// Clock of what is said.
	began time.Time
	// What it did so far.
	kills, killsOfOthers, hashes int

	mutex sync.Mutex
	// By when the learner has caught up; zero once it has.
	due            time.Time
	lag            uint64
	resident, most int64
}

// standBeside has a learner follow a stock cluster under load for so long, and lead it in the end.
func standBeside(ctx context.Context, opt options, dir string, seed uint64) error {
	c, err := newCluster(alike(opt.etcd, opt.size), dir)
	if err != nil {
		return err
	}
	defer c.discard()
	c.dialDirectly()
	c.addFlags(replaceEtcdFlags, replaceOrlopFlags, strings.Fields(opt.flags))
	if err := c.startAll(ctx); err != nil {
		return err
	}
	b := &beside{cluster: c, opt: opt, random: rand.New(rand.NewPCG(seed, 0)), began: time.Now()}
	defer func() {
		if b.learner != nil {
			b.learner.discard()
		}
	}()
	earlier := &history{last: 1}
	for isLast := false; !isLast; {
		isLast = time.Since(b.began)+besidePart >= opt.learner
		if earlier, err = b.part(ctx, earlier, seed, isLast); err != nil {
			tail := ""
			if b.learner != nil {
				tail = b.learner.logTail()
			}
			return fmt.Errorf("%w\n%s%s", err, c.logTails(), tail)
		}
	}
	return c.wasChecked()
}

func (b *beside) say(format string, arguments ...any) {
	fmt.Printf("  %7.2f s  %s\n", time.Since(b.began).Seconds(), fmt.Sprintf(format, arguments...))
}

// part is some of the time, after which all is judged.
func (b *beside) part(ctx context.Context, earlier *history, seed uint64, isLast bool) (*history, error) {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	end := time.Now().Add(besidePart)
	recorder := newRecorder()
	t := newTraffic(ctx, b.cluster, recorder, seed)
	t.continues(earlier)
	b.traffic = t
	for _, m := range b.members {
		t.join(m)
	}
	defer t.stop()
	p, err := startPressure(ctx, t, b.opt.rate)
	if err != nil {
		return nil, err
	}
	defer p.end()
	watched := watchOver(ctx, b.cluster, t, earlier, fail, b.compare)
	if b.learner == nil {
		err = b.join(ctx)
	}
	if err == nil {
		sampled := b.sample(ctx, fail)
		err = b.troubleUntil(ctx, end)
		sampled()
	}
	if err == nil && isLast {
		err = b.takesOver(ctx)
	}
	p.end()
	watched()
	if cause := context.Cause(ctx); cause != nil {
		return nil, cause
	}
	if err != nil {
		return nil, err
	}
	service := serviceOf(recorder, 0, recorder.now())
	h, err := finish(ctx, b.cluster, t)
	if err == nil && !isLast {
		err = b.compare(ctx, h.last)
	}
	if err != nil {
		return nil, err
	}
	b.say("ok: %s; up to revision %d %d hashes of the learner were equal; it was ended %d times, others %d times; "+
		"%d entries behind at most; %d MiB resident, at most %d MiB\n    %v", recorder.report(), h.last, b.hashes,
		b.kills, b.killsOfOthers, b.lag, b.resident>>20, b.most>>20, service)
	return h, nil
}

// join adds the learner once there is enough to be sent a snapshot.
func (b *beside) join(ctx context.Context) error {
	if err := b.traffic.reaches(ctx, 2*journalStep); err != nil {
		return err
	}
	leader, err := b.leader(ctx)
	if err != nil {
		return err
	}
	m, err := b.newLearner(ctx, b.members[leader], b.opt.server)
	if err != nil {
		return err
	}
	b.mutex.Lock()
	b.learner, b.due = m, time.Now().Add(patience)
	b.mutex.Unlock()
	b.say("%s is added as a learner", m.name)
	if err := m.start(); err != nil {
		return err
	}
	return m.says(ctx, "applied snapshot")
}

// troubleUntil kills members now and then: the learner, or one of the others.
func (b *beside) troubleUntil(ctx context.Context, end time.Time) error {
	for {
		pause(ctx, time.Duration(4+b.random.IntN(8))*time.Second)
		if ctx.Err() != nil || time.Now().After(end) {
			return context.Cause(ctx)
		}
		signal := syscall.SIGKILL
		if b.random.IntN(3) == 0 {
			signal = syscall.SIGTERM
		}
		var err error
		if b.random.IntN(2) == 0 {
			err = b.killLearner(signal)
		} else {
			err = b.killOther(ctx, signal)
		}
		if err != nil {
			return err
		}
	}
}

func (b *beside) killLearner(signal syscall.Signal) error {
	b.say("%v of the learner", signal)
	if err := b.learner.end(signal); err != nil {
		return err
	}
	b.kills++
	b.mutex.Lock()
	b.due = time.Now().Add(patience)
	b.mutex.Unlock()
	return b.learner.start()
}

func (b *beside) killOther(ctx context.Context, signal syscall.Signal) error {
	i := b.random.IntN(b.size())
	b.say("%v of %s", signal, b.members[i].name)
	if err := b.end(i, signal); err != nil {
		return err
	}
	b.killsOfOthers++
	pause(ctx, time.Duration(b.random.IntN(3000))*time.Millisecond)
	if err := b.start(i); err != nil {
		return err
	}
	return b.allAnswer(ctx)
}

// sample looks at how far the learner is behind, and at its memory, until the answer is called.
func (b *beside) sample(ctx context.Context, fail context.CancelCauseFunc) func() {
	ctx, end := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ; ctx.Err() == nil; pause(ctx, calm/2) {
			if err := b.look(ctx); err != nil {
				fail(err)
				return
			}
		}
	}()
	return func() {
		end()
		<-done
	}
}

func (b *beside) look(ctx context.Context) error {
	b.mutex.Lock()
	due := b.due
	b.mutex.Unlock()
	if err := b.learner.diedUnasked(); err != nil {
		return err
	}
	isLate := !due.IsZero() && time.Now().After(due)
	leading := uint64(0)
	for _, m := range b.current() {
		call, cancel := context.WithTimeout(ctx, time.Second)
		status, err := m.client.Status(call, m.clientURL)
		if cancel(); err == nil && status.Leader == status.Header.MemberId {
			leading = max(leading, status.RaftIndex)
		}
	}
	call, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	status, err := b.learner.client.Status(call, b.learner.clientURL)
	if err != nil || leading == 0 {
		if isLate {
			return fmt.Errorf("the learner or a leader does not answer: %v", err)
		}
		return nil
	}
	lag := leading - min(leading, status.RaftAppliedIndex)
	resident, _ := b.learner.memory("VmRSS")
	b.mutex.Lock()
	defer b.mutex.Unlock()
	b.resident, b.most = resident, max(b.most, resident)
	switch {
	case b.due != due:
	case due.IsZero() && lag > lagMost:
		return fmt.Errorf("the learner had caught up, and is %d entries behind", lag)
	case due.IsZero():
		b.lag = max(b.lag, lag)
	case lag <= lagMost/10:
		b.due = time.Time{}
	case isLate:
		return fmt.Errorf("the learner does not catch up: it is %d entries behind", lag)
	}
	return nil
}

// compare demands that the learner has what the voters have at a revision: the hash, as they tell each other, and all
// keys. It may be dead for a moment.
func (b *beside) compare(ctx context.Context, revision int64) error {
	b.mutex.Lock()
	m := b.learner
	b.mutex.Unlock()
	if m == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return poll(ctx, func(ctx context.Context) error {
		hash, err := m.hashOfPeer(ctx, revision)
		if err != nil {
			return err
		}
		at := b.current()[0]
		wanted, err := at.client.HashKV(ctx, at.clientURL, revision)
		if err != nil {
			return err
		}
		if hash.Compacted != wanted.CompactRevision {
			return fmt.Errorf("%s is compacted at %d, and %s at %d", m.name, hash.Compacted, at.name,
				wanted.CompactRevision)
		}
		keys, err := m.keysAt(ctx, revision)
		if err != nil {
			return err
		}
		others, err := at.keysAt(ctx, revision)
		if err != nil {
			return err
		}
		if hash.Hash != wanted.Hash || !slices.Equal(keys, others) {
			return final{fmt.Errorf("at revision %d, compacted at %d, %s has the hash %d (%d keys), %s %d (%d)",
				revision, hash.Compacted, m.name, hash.Hash, len(keys), at.name, wanted.Hash, len(others))}
		}
		b.hashes++
		return nil
	})
}

func (m *member) keysAt(ctx context.Context, revision int64) ([]version, error) {
	answer, err := m.client.Get(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithSerializable(),
		clientv3.WithRev(revision))
	if err != nil {
		return nil, fmt.Errorf("the keys of %s: %w", m.name, err)
	}
	return versionsOf(answer.Kvs), nil
}

type peerHash struct {
	Hash      uint32 `json:"hash"`
	Compacted int64  `json:"compact_revision"`
}

// hashOfPeer asks as other members ask: a learner answers no client.
func (m *member) hashOfPeer(ctx context.Context, revision int64) (peerHash, error) {
	var hash peerHash
	body := bytes.NewReader(fmt.Appendf(nil, `{"revision":%d}`, revision))
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, m.peerURL+"/members/hashkv", body)
	if err != nil {
		return hash, err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return hash, fmt.Errorf("the hash of %s: %w", m.name, err)
	}
	defer answer.Body.Close()
	said, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		return hash, fmt.Errorf("the hash of %s: %s: %s (%v)", m.name, answer.Status, said, err)
	}
	return hash, json.Unmarshal(said, &hash)
}

// takesOver makes a voter and then the leader of the learner.
func (b *beside) takesOver(ctx context.Context) error {
	leader, err := b.leader(ctx)
	if err != nil {
		return err
	}
	m := b.learner
	b.mutex.Lock()
	b.learner = nil
	b.mutex.Unlock()
	if err := b.promote(ctx, b.members[leader], m); err != nil {
		return err
	}
	b.traffic.join(m)
	if err := b.lead(ctx, m); err != nil {
		return err
	}
	b.say("%s votes and leads", m.name)
	return b.traffic.goesOn(ctx, func(int) bool { return true })
}
