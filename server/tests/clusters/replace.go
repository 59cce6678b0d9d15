package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Unavailable for so long in all, at most, is what a replacement of all members aims at. It is said, not judged: the
// machine has other work.
const unavailableAim = 2 * time.Second

// All three of etcd's checks of its members' data, and a log so short that whoever joins is sent a snapshot.
var (
	replaceEtcdFlags = append([]string{
		"--snapshot-count", "500", "--corrupt-check-time", "10s", "--compact-hash-check-time", "10s",
		"--feature-gates", "CompactHashCheck=true,InitialCorruptCheck=true",
	}, shortLog...)
	replaceOrlopFlags = slices.Concat(replaceEtcdFlags, smallLog, []string{
		"--consensus-catchup-log-bytes", "0", "--server-snapshot-write-back-bytes", "64KiB",
	})
)

// replacement is a live cluster whose members make place for those of another program, one after the other.
type replacement struct {
	*cluster
	opt      options
	traffic  *traffic
	pressure *pressure
	restarts int
	// Whether the member that leads to the end hands its office over before it is removed.
	isMoved bool
}

// withSeed gives a place for data and a seed, and keeps the data of what fails where that is wanted.
func withSeed(
	ctx context.Context, opt options, name string, do func(context.Context, options, string, uint64) error,
) error {
	seed := opt.seed
	if seed == 0 {
		seed = rand.Uint64()
	}
	dir, err := os.MkdirTemp(opt.dataDir, "clusters-")
	if err != nil {
		return err
	}
	fmt.Printf("%s, seed %d\n", name, seed)
	if err := do(ctx, opt, dir, seed); err != nil {
		if opt.keep {
			fmt.Println("kept:", dir)
		} else {
			err = errors.Join(err, os.RemoveAll(dir))
		}
		return err
	}
	return os.RemoveAll(dir)
}

// replaceMembers replaces stock members by Orlop's and goes back, under load, and judges all that clients saw.
func replaceMembers(ctx context.Context, opt options, dir string, seed uint64) error {
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
	rounds := 1
	if opt.isLong {
		rounds = 4
	}
	earlier := &history{last: 1}
	for round := range rounds {
		if earlier, err = replaceRound(ctx, opt, c, earlier, seed+uint64(round)); err != nil {
			return fmt.Errorf("%w\n%s", err, c.logTails())
		}
	}
	return nil
}

// replaceRound goes forth and back under one load, and judges it.
func replaceRound(ctx context.Context, opt options, c *cluster, earlier *history, seed uint64) (*history, error) {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	recorder := newRecorder()
	t := newTraffic(ctx, c, recorder, seed)
	t.continues(earlier)
	r := &replacement{cluster: c, opt: opt, traffic: t, isMoved: seed%2 == 0}
	for _, m := range c.members {
		t.join(m)
	}
	defer t.stop()
	var err error
	if r.pressure, err = startPressure(ctx, t, opt.rate); err != nil {
		return nil, err
	}
	defer r.pressure.end()
	watched := watchOver(ctx, c, t, earlier, fail, nil)
	err = r.forthAndBack(ctx)
	r.pressure.end()
	watched()
	if cause := context.Cause(ctx); cause != nil {
		return nil, cause
	}
	if err != nil {
		return nil, err
	}
	h, err := finish(ctx, c, t)
	if err != nil {
		return nil, err
	}
	fmt.Printf("ok: %s; equal hashes at %d revisions up to %d, %d compactions\n", recorder.report(), t.journal.hashes,
		t.journal.told, t.journal.compactions)
	return h, c.wasChecked()
}

// Of stock members' logs: what each of etcd's three checks says when it has found nothing wrong.
var checkWords = []string{
	"initial corruption checking passed", "finished peer corruption check", "finished compaction hash check",
}

// wasChecked says how often stock members compared, and demands that each of them did so where it began anew.
func (c *cluster) wasChecked() error {
	logs, err := filepath.Glob(filepath.Join(c.dir, "*.log"))
	if err != nil {
		return err
	}
	counts := make([]int, len(checkWords))
	for _, path := range logs {
		log, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for i, words := range checkWords {
			counts[i] += bytes.Count(log, []byte(words))
		}
	}
	fmt.Printf("    stock members say %q, so often: %d\n", checkWords, counts)
	if counts[0] == 0 {
		return errors.New("no stock member has compared itself with others when it started")
	}
	return nil
}

// watchOver keeps the journal meanwhile. What it finds wrong ends all else; it ends when the answer is called.
func watchOver(
	ctx context.Context, c *cluster, t *traffic, earlier *history, fail context.CancelCauseFunc,
	beside func(context.Context, int64) error,
) func() {
	j := newJournal(c, t, earlier)
	j.beside = beside
	ctx, end := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := j.run(ctx); err != nil {
			fail(err)
		}
	}()
	return func() {
		end()
		<-done
	}
}

func (r *replacement) say(format string, arguments ...any) {
	fmt.Printf("  %6.2f s  %s\n", r.traffic.recorder.now().Seconds(), fmt.Sprintf(format, arguments...))
}

func (r *replacement) forthAndBack(ctx context.Context) error {
	// The log is to be compacted before anybody joins.
	if err := r.traffic.reaches(ctx, r.traffic.floor+2*journalStep); err != nil {
		return err
	}
	for _, binary := range []string{r.opt.server, r.opt.etcd} {
		began := r.traffic.recorder.now()
		forth := r.leg
		if r.opt.isInPlace && binary == r.opt.server {
			forth = func(ctx context.Context, _ string) error { return r.inPlace(ctx) }
		}
		if err := forth(ctx, binary); err != nil {
			return err
		}
		ended := r.traffic.recorder.now()
		service := serviceOf(r.traffic.recorder, began, ended)
		verdict := "as wanted"
		if service.unavailable() > unavailableAim {
			verdict = "longer than wanted"
		}
		r.say("members were replaced in %.1f s: %v\n    (%v)", (ended - began).Seconds(), service, verdict)
		r.isMoved = !r.isMoved
	}
	return nil
}

// leg replaces members by those of one program. One of the old ones leads all the time, so that each new one is sent
// the other kind's snapshot; it goes last.
func (r *replacement) leg(ctx context.Context, binary string) error {
	var old []*member
	for _, m := range r.members {
		if m.binary != binary && len(old) < r.opt.of {
			old = append(old, m)
		}
	}
	keeper := old[len(old)-1]
	for _, m := range old {
		if err := r.lead(ctx, keeper); err != nil {
			return err
		}
		if err := r.replace(ctx, m, keeper, binary); err != nil {
			return err
		}
	}
	return nil
}

// provesItself has a member that is new start again from what it has, and lead.
func (r *replacement) provesItself(ctx context.Context, m *member) error {
	if err := r.restart(ctx, m); err != nil {
		return err
	}
	r.pressure.speaksTo(r.members...)
	if err := r.lead(ctx, m); err != nil {
		return err
	}
	if err := r.traffic.goesOn(ctx, func(int) bool { return true }); err != nil {
		return err
	}
	r.say("%s leads", m.name)
	return nil
}

func (r *replacement) replace(ctx context.Context, old, keeper *member, binary string) error {
	m, err := r.join(ctx, keeper, binary)
	if err != nil {
		return err
	}
	// From now on it is known to clients; but a restart is not for all of them.
	r.traffic.join(m)
	if err := r.provesItself(ctx, m); err != nil {
		return err
	}
	if old != keeper || !r.isMoved {
		if err := r.lead(ctx, keeper); err != nil {
			return err
		}
	}
	return r.dismissed(ctx, old, m)
}

// join brings in a member by the leader's snapshot, first as a learner.
func (r *replacement) join(ctx context.Context, leader *member, binary string) (*member, error) {
	m, err := r.newLearner(ctx, leader, binary)
	if err != nil {
		return nil, err
	}
	r.say("%s is added, %s", m.name, m.kind())
	if err := m.start(); err != nil {
		return nil, err
	}
	if err = r.promote(ctx, leader, m); err == nil {
		r.say("%s is promoted", m.name)
		if err = m.answers(ctx); err == nil {
			err = m.says(ctx, "applied snapshot", "a state of another member has arrived")
		}
	}
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, m.logTail())
		m.discard()
		return nil, err
	}
	r.say("%s took the snapshot of %s and votes", m.name, leader.name)
	return m, nil
}

func (m *member) kind() string {
	if m.isOrlop {
		return "Orlop"
	}
	return "etcd"
}

// restart has a member begin with what it has on disk. Every third may end in its own way.
func (r *replacement) restart(ctx context.Context, m *member) error {
	signal := syscall.SIGKILL
	if r.restarts%3 == 0 {
		signal = syscall.SIGTERM
	}
	r.restarts++
	began := time.Now()
	if err := m.end(signal); err != nil {
		return err
	}
	ended := time.Now()
	if err := m.start(); err != nil {
		return err
	}
	if err := m.answers(ctx); err != nil {
		return err
	}
	r.say("%s was restarted (%v): it ended within %v, and answered %v later", m.name, signal,
		ended.Sub(began).Round(time.Millisecond), time.Since(ended).Round(time.Millisecond))
	return nil
}

// dismissed takes a member out, once its clients know others.
func (r *replacement) dismissed(ctx context.Context, old, m *member) error {
	r.pressure.speaksTo(r.without(old)...)
	if err := r.traffic.leave(ctx, old); err != nil {
		return err
	}
	leader, err := r.leader(ctx)
	if err != nil {
		return err
	}
	way := ""
	if r.members[leader] == old {
		way = " while it leads"
	}
	if err := r.remove(ctx, m, old); err != nil {
		return err
	}
	r.say("%s was removed%s", old.name, way)
	return r.diedUnasked()
}
