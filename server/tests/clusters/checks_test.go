package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// account is a run without faults: a store, the clients that changed it, and what was seen of it. Each lie changes one
// thing in it, and the check that is there for it must say so.
type account struct {
	events     []event
	operations []*operation
	sessions   []*session
	leases     []*leaseStory
}

var errUnknown = errors.New("no answer")

// truth plays some operations of three clients, one after the other; every fifth write has no answer. Two watches see
// all of it, one with what was there before.
func truth(t *testing.T) *account {
	run := &account{}
	now := time.Duration(0)
	tick := func() time.Duration { now += time.Millisecond; return now }
	versions := map[string]version{}
	revision := int64(1)
	change := func(o *operation, lease int64) {
		revision++
		for _, key := range o.keys {
			e := event{version: version{key: key, modified: revision}, isDelete: o.kind == remove}
			if before, isThere := versions[key]; isThere {
				e.previous = &before
			}
			if !e.isDelete {
				e.value, e.create, e.number, e.lease = o.value, revision, 1, lease
				if e.previous != nil {
					e.create, e.number = e.previous.create, e.previous.number+1
				}
				versions[key] = e.version
			} else {
				delete(versions, key)
			}
			run.events = append(run.events, e)
		}
		o.revision = revision
	}
	for i := range 200 {
		key := modelKey(i % 3)
		o := &operation{client: i % 3, kind: kind(i * 7 % int(kinds)), keys: []string{key}, called: tick()}
		if o.isWrite() && o.kind != remove {
			o.value = fmt.Sprintf("%d.%d", o.client, i)
		}
		there, isThere := versions[key]
		switch o.kind {
		case get:
			if o.revision = revision; isThere {
				o.found = []version{there}
			}
		case list:
			o.keys, o.revision = nil, revision
			for each := range modelKeys {
				if there, isThere := versions[modelKey(each)]; isThere {
					o.found = append(o.found, there)
				}
			}
		case put:
			change(o, 0)
		case remove:
			if o.revision = revision; isThere {
				change(o, 0)
				o.removed = 1
			}
		case swap:
			o.revision, o.demanded = revision, there.modified
			if o.succeeded = i%4 != 0; o.succeeded {
				change(o, 0)
			} else if o.demanded++; isThere {
				o.found = []version{there}
			}
		case pair:
			o.keys = append(o.keys, modelKey((i+1)%3))
			change(o, 0)
		}
		o.returned = tick()
		if o.isWrite() && i%5 == 0 {
			o.err = errUnknown
			o.revision, o.found, o.removed, o.succeeded = 0, nil, 0, false
		}
		run.operations = append(run.operations, o)
	}
	const lease, seconds = 77, 2
	held := &operation{
		kind: put, keys: []string{"lease/0"}, value: "held", isFiller: true, lease: lease, called: tick(),
	}
	change(held, lease)
	held.returned = tick()
	run.operations = append(run.operations, held)
	run.leases = []*leaseStory{{id: lease, ttl: seconds, renewed: now}}
	now += seconds * time.Second
	change(&operation{kind: remove, keys: []string{"lease/0"}}, 0)
	for _, hasPrevious := range []bool{true, false} {
		s := &session{watcher: "a watcher", from: 1, hasPrevious: hasPrevious}
		for at := int64(2); at <= revision; at++ {
			answer := watchAnswer{at: tick(), revision: revision}
			for _, e := range run.events {
				if e.modified != at {
					continue
				}
				if !hasPrevious {
					e.previous = nil
				}
				answer.events = append(answer.events, e)
			}
			s.answers = append(s.answers, answer)
			if at == revision/2 {
				s.answers = append(s.answers, watchAnswer{at: tick(), revision: at, isProgress: true})
			}
		}
		run.sessions = append(run.sessions, s)
	}
	if err := run.check(); err != nil {
		t.Fatalf("a true history is refused: %v", err)
	}
	return run
}

func (run *account) check() error {
	plain := slices.Clone(run.events)
	for i := range plain {
		plain[i].previous = nil
	}
	h, err := replay(plain)
	if err != nil {
		return err
	}
	return checkAll(h, &recorder{operations: run.operations, sessions: run.sessions, leases: run.leases})
}

// first is the first operation with an answer that is wanted.
func (run *account) first(is func(*operation) bool) *operation {
	at := slices.IndexFunc(run.operations, func(o *operation) bool { return o.err == nil && is(o) })
	return run.operations[at]
}

// last is the last event that is the newest of its key, and no deletion.
func (run *account) last() int {
	for at := len(run.events) - 3; at >= 0; at-- {
		e := run.events[at]
		later := func(other event) bool { return other.key == e.key }
		if !e.isDelete && !slices.ContainsFunc(run.events[at+1:], later) {
			return at
		}
	}
	panic("no key is left")
}

func TestEachLieIsFound(t *testing.T) {
	lies := []struct {
		name string
		// What the error must say, so that no other check is thanked for it.
		says string
		tell func(*account)
	}{
		{"a put that was read is dropped from the model", "not linearizable", func(run *account) {
			read := run.first(func(o *operation) bool { return o.kind == get && len(o.found) == 1 })
			run.operations = slices.DeleteFunc(run.operations, func(o *operation) bool {
				return o.value == read.found[0].value
			})
		}},
		{"an acknowledged put is not among the events", "was acknowledged and is not", func(run *account) {
			o := run.first(func(o *operation) bool { return o.kind == put })
			o.value += " of another"
		}},
		{"a put without an answer happens and is not in the history", "nobody asked for", func(run *account) {
			run.events[run.last()].value = "of nobody"
		}},
		{"a revision is missing", "comes", func(run *account) {
			missing := run.events[run.last()].modified
			run.events = slices.DeleteFunc(run.events, func(e event) bool { return e.modified == missing })
		}},
		{"a read is stale", "was called behind the answer of", func(run *account) {
			for _, o := range run.operations[50:] {
				if o.kind == get && o.err == nil {
					o.revision, o.found = 1, nil
					return
				}
			}
		}},
		{"a read is stale, and says it is not", "not linearizable", func(run *account) {
			for i, o := range run.operations {
				if o.kind == get && len(o.found) == 1 && i > 50 {
					o.found[0].modified--
					return
				}
			}
		}},
		{"a read of all keys leaves one out", "but \"k/", func(run *account) {
			o := run.first(func(o *operation) bool { return o.kind == list && len(o.found) > 1 })
			o.found = o.found[1:]
		}},
		{"a read of all keys leaves one out, to porcupine", "not linearizable", func(run *account) {
			o := run.first(func(o *operation) bool { return o.kind == list && len(o.found) > 1 })
			o.found = o.found[1:]
		}},
		{"a read has the version of another time", "but \"k/", func(run *account) {
			o := run.first(func(o *operation) bool { return o.kind == get && len(o.found) > 0 })
			o.found[0].number++
		}},
		{"a serializable read is from the future", "from the future", func(run *account) {
			o := run.first(func(o *operation) bool { return o.kind == get })
			o.isSerializable, o.revision = true, 100000
		}},
		{"a swap succeeds over another's write", "not linearizable", func(run *account) {
			o := run.first(func(o *operation) bool { return o.kind == swap && o.succeeded })
			o.demanded--
		}},
		{"a swap fails without reason", "failed, and its demand holds", func(run *account) {
			o := run.first(func(o *operation) bool { return o.kind == swap && !o.succeeded })
			o.demanded--
		}},
		{"a removal finds nothing", "not linearizable", func(run *account) {
			o := run.first(func(o *operation) bool { return o.kind == remove && o.removed == 1 })
			o.removed = 0
		}},
		{"half a transaction", "changed 2 keys", func(run *account) {
			o := run.first(func(o *operation) bool { return o.kind == put && !o.isFiller })
			o.kind, o.keys = pair, append(o.keys, modelKey(modelKeys-1))
		}},
		{"a write happens twice", "happened twice", func(run *account) {
			at := run.last()
			again := run.events[at]
			again.modified, again.number = run.events[len(run.events)-1].modified+1, again.number+1
			run.events = append(run.events, again)
		}},
		{"a key goes that nobody removed", "which nobody asked for", func(run *account) {
			e := event{version: version{key: run.events[run.last()].key}, isDelete: true}
			e.modified = run.events[len(run.events)-1].modified + 1
			run.events = append(run.events, e)
		}},
		{"a watch loses an event", "told of", func(run *account) {
			s := run.sessions[1]
			s.answers = slices.Delete(s.answers, 30, 31)
		}},
		{"a watch tells two events in the wrong order", "told of", func(run *account) {
			s := run.sessions[1]
			s.answers[20].events, s.answers[21].events = s.answers[21].events, s.answers[20].events
		}},
		{"a watch tells an event twice", "an event too much", func(run *account) {
			s := run.sessions[1]
			s.answers = slices.Insert(s.answers, 20, s.answers[20])
		}},
		{"a watch tells a revision in two responses", "leaves out", func(run *account) {
			s := run.sessions[1]
			at := slices.IndexFunc(s.answers, func(a watchAnswer) bool { return len(a.events) == 2 })
			rest := s.answers[at]
			rest.events = rest.events[1:]
			s.answers[at].events = s.answers[at].events[:1]
			s.answers = slices.Insert(s.answers, at+1, rest)
		}},
		{"a watch tells what was there before wrongly", "behind", func(run *account) {
			s := run.sessions[0]
			at := slices.IndexFunc(s.answers, func(a watchAnswer) bool {
				return len(a.events) > 0 && a.events[0].previous != nil
			})
			s.answers[at].events[0].previous = nil
		}},
		{"progress is told before an event", "were not told", func(run *account) {
			s := run.sessions[1]
			at := slices.IndexFunc(s.answers, func(a watchAnswer) bool { return a.isProgress })
			s.answers[at].revision++
		}},
		{"a watch skips the beginning", "told of", func(run *account) {
			run.sessions[1].answers = run.sessions[1].answers[1:]
		}},
		{"a lease ends early", "was gone at", func(run *account) {
			run.leases[0].renewed += time.Second
		}},
	}
	for _, lie := range lies {
		t.Run(lie.name, func(t *testing.T) {
			run := truth(t)
			lie.tell(run)
			err := run.check()
			if err == nil {
				t.Fatal("nobody found it")
			}
			if !strings.Contains(err.Error(), lie.says) {
				t.Fatalf("no check says %q: %v", lie.says, err)
			}
		})
	}
}

// A write without an answer may have happened or not, and deletions at any later time; nobody may hold that against it.
func TestUnknownFateIsNoLie(t *testing.T) {
	run := truth(t)
	unknown := &operation{client: 5, kind: put, keys: []string{modelKey(0)}, value: "never", err: errUnknown, called: 1}
	never := &operation{client: 6, kind: remove, keys: []string{modelKey(1)}, err: errUnknown, called: 1}
	run.operations = append(run.operations, unknown, never)
	if err := run.check(); err != nil {
		t.Fatal(err)
	}
}
