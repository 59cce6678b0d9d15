package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// Segments so small that a few MiB of writes go through all that large ones go through.
var smallLog = []string{"--store-checkpoint-wal-bytes", "8MiB", "--wal-segment-bytes", "4MiB"}

// What a follower may miss and still be sent as entries.
var shortLog = []string{"--snapshot-catchup-entries", "100"}

var errSkipped = errors.New("skipped")

// Stock etcd preallocates log segments of 64 MiB, this one and the next. What all rounds write must fit as well: only
// the member whose disk is filled may be without space.
const (
	tmpfsMiB         = 192
	tmpfsMiBPerRound = 40
)

func prepareFull(t *trouble) error {
	capacity := fmt.Sprintf("size=%dm", tmpfsMiB+tmpfsMiBPerRound*t.rounds)
	for _, m := range t.members {
		if err := syscall.Mount("tmpfs", m.dir, "tmpfs", 0, capacity); err != nil {
			return fmt.Errorf("%w: a tmpfs cannot be mounted (%w); it takes root", errSkipped, err)
		}
		t.undo = append(t.undo, func() { syscall.Unmount(m.dir, syscall.MNT_DETACH) })
	}
	return nil
}

func fullFollower(ctx context.Context, t *trouble) error {
	for range t.rounds {
		follower, err := t.follower(ctx)
		if err != nil {
			return err
		}
		if err := t.full(ctx, follower); err != nil {
			return err
		}
	}
	return nil
}

func fullLeader(ctx context.Context, t *trouble) error {
	for range t.rounds {
		leader, err := t.leader(ctx)
		if err != nil {
			return err
		}
		if err := t.full(ctx, leader); err != nil {
			return err
		}
	}
	return nil
}

// full fills the disk of one member while much is written, and frees it. The others have a majority, so writes go on
// through them. Orlop waits for space, so it must not end; stock etcd may, and is started again.
func (t *trouble) full(ctx context.Context, i int) error {
	m := t.members[i]
	ballast := filepath.Join(m.dir, "ballast")
	if err := fillDisk(ballast); err != nil {
		return err
	}
	t.say("the disk of %s is full", m.name)
	// What is refused meanwhile is of unknown fate, as ever.
	t.fill(ctx, (i+1)%t.size(), 12)
	t.say("12 MiB were written, or refused")
	stuck := t.traffic.goesOn(ctx, func(other int) bool { return other != i })
	if stuck != nil {
		if leader, err := t.leader(ctx); err != nil {
			t.say("nobody writes: %v", err)
		} else {
			t.say("nobody writes, and %s leads", t.members[leader].name)
		}
	}
	if err := os.Remove(ballast); err != nil {
		return err
	}
	t.say("the disk of %s is freed", m.name)
	if m.diedUnasked() != nil && !m.isOrlop {
		t.say("%s had ended, and is started again", m.name)
		t.network.proxies[i].close()
		if err := t.start(i); err != nil {
			return err
		}
	}
	if err := t.allAnswer(ctx); err != nil {
		return err
	}
	if stuck != nil {
		return fmt.Errorf("while the disk of %s was full: %w", m.name, stuck)
	}
	pause(ctx, calm)
	return nil
}

func fillDisk(path string) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	for _, length := range []int{1 << 20, 4 << 10} {
		block := make([]byte, length)
		for err = nil; err == nil; {
			_, err = file.Write(block)
		}
		if !errors.Is(err, syscall.ENOSPC) {
			return err
		}
	}
	return nil
}

// Two checkpoints of a small log, and more.
const behindMiB = 24

// fill writes about so many MiB through one member, by several clients, in values that the model leaves out.
func (t *trouble) fill(ctx context.Context, at, mib int) {
	var writers sync.WaitGroup
	for range fillers {
		t.fillers++
		c := newCaller(fillerNumber+t.fillers, t.members[at].client, t.traffic.recorder, t.random.Uint64())
		writers.Go(func() {
			refused := 0
			for range mib << 20 / fillerBytes / fillers {
				key := fmt.Sprintf("fill/%d/%03d", c.number%fillers, c.written%500)
				o := &operation{kind: put, keys: []string{key}, isFiller: true, padding: fillerBytes}
				if c.do(ctx, o) != nil {
					refused++
					pause(ctx, 100*time.Millisecond)
				}
				if ctx.Err() != nil || refused > refusedMost {
					return
				}
			}
		})
	}
	writers.Wait()
}

const (
	fillers = 4
	// Numbers of clients beside those of the traffic.
	fillerNumber = 1_000_000
	fillerBytes  = 32 << 10
	// A client gives up behind so many errors, each of which may take as long as a call may take.
	refusedMost = 3
)

// behind keeps a follower away while more is written than the log keeps, so that it has to be sent the state.
func behind(ctx context.Context, t *trouble) error {
	for round := range t.rounds {
		follower, err := t.follower(ctx)
		if err != nil {
			return err
		}
		m := t.members[follower]
		m.mark()
		isKilled := (t.random.IntN(2) == 0) != (round%2 == 1)
		if isKilled {
			t.say("SIGKILL of %s", m.name)
			err = t.end(follower, syscall.SIGKILL)
		} else {
			t.say("%s is cut off", m.name)
			for other := range t.size() {
				t.network.both(follower, other, refuse)
			}
		}
		if err != nil {
			return err
		}
		t.fill(ctx, (follower+1)%t.size(), behindMiB)
		t.say("%d MiB are written, and it is back", behindMiB)
		t.network.heal()
		if isKilled {
			if err := t.start(follower); err != nil {
				return err
			}
		}
		if err := t.allAnswer(ctx); err != nil {
			return err
		}
		// For half a minute behind a state the log is kept longer, so the next follower may be sent entries.
		if round == 0 {
			if err := m.says(ctx, "applied snapshot", "a state of another member has arrived"); err != nil {
				return err
			}
		}
		pause(ctx, calm)
	}
	return nil
}

// damage flips one bit of a page segment of a follower that is stopped. It starts, serves, and makes up for the page
// from what the others have.
func damage(ctx context.Context, t *trouble) error {
	for range t.rounds {
		t.fill(ctx, t.any(), 12)
		follower, err := t.follower(ctx)
		if err != nil {
			return err
		}
		m := t.members[follower]
		if err := t.end(follower, syscall.SIGTERM); err != nil {
			return err
		}
		place, err := t.flip(m)
		if err != nil {
			return err
		}
		t.say("%s is stopped, %s is flipped", m.name, place)
		if err := t.start(follower); err != nil {
			return err
		}
		if err := t.allAnswer(ctx); err != nil {
			return err
		}
		pause(ctx, calm)
		t.verifyLater(m)
	}
	return nil
}

// flip changes one bit of a byte that is not zero, in a page segment that the log's replay does not replace.
func (t *trouble) flip(m *member) (string, error) {
	segments, err := filepath.Glob(filepath.Join(m.data(), "member", "pages", "*.seg"))
	if more, _ := filepath.Glob(filepath.Join(m.data(), "pages", "*.seg")); err == nil {
		segments = append(segments, more...)
	}
	if err != nil || len(segments) == 0 {
		return "", fmt.Errorf("%s has no page segments (%v)", m.data(), err)
	}
	for range 10000 {
		path := segments[t.random.IntN(len(segments))]
		content, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		if len(content) == 0 {
			continue
		}
		at := t.random.IntN(len(content))
		if content[at] == 0 {
			continue
		}
		file, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return "", err
		}
		_, err = file.WriteAt([]byte{content[at] ^ 1<<t.random.IntN(8)}, int64(at))
		return fmt.Sprintf("byte %d of %s", at, filepath.Base(path)), errors.Join(err, file.Close())
	}
	return "", errors.New("all bytes are zero")
}

// verifyLater has Orlop's own check find the directory sound, once the members have agreed.
func (t *trouble) verifyLater(m *member) {
	t.afterwards = append(t.afterwards, func() error {
		if err := m.end(syscall.SIGTERM); err != nil {
			return err
		}
		said, err := exec.Command(m.binary, "verify", m.data()).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s is not whole again: %w\n%s", m.name, err, said)
		}
		return nil
	})
}
