package main

import (
	"fmt"
	"hash/crc32"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// kind says what an operation does to its keys.
type kind int

const (
	get  kind = iota // reads one key
	list             // reads all keys of the model
	put
	remove
	swap // puts if the key still has the revision that was seen, else reads it
	pair // puts two keys at once
	kinds
)

var kindNames = [kinds]string{"get", "list", "put", "remove", "swap", "pair"}

// version is what a store says of a key.
type version struct {
	key, value               string
	create, modified, number int64
	lease                    int64
}

// operation is what one client asked for, when, and what it was told.
type operation struct {
	client int
	kind   kind
	keys   []string
	// No two writes of a run have the same value, so that an event tells whose it is.
	value string
	// Of a swap: the key's revision that it demands, 0 for a key that is not there.
	demanded int64
	// Of a put.
	lease int64
	// A read that any member may answer as it likes.
	isSerializable bool
	// Written to make data: too many keys for the model, which leaves them out.
	isFiller bool
	// So much longer is what is written.
	padding int

	// When it should have been called, where there is a rate.
	due              time.Duration
	called, returned time.Duration
	// The answer; without one nobody knows whether it happened.
	err       error
	revision  int64
	found     []version
	removed   int64
	succeeded bool
}

func (o *operation) String() string {
	text := fmt.Sprintf("client %d %s %v", o.client, kindNames[o.kind], o.keys)
	if o.value != "" {
		text += fmt.Sprintf(" = %q", o.value)
	}
	if o.kind == swap {
		text += fmt.Sprintf(" if at %d", o.demanded)
	}
	if o.isSerializable {
		text += " serializable"
	}
	text += fmt.Sprintf(" [%.3f s - %.3f s]", o.called.Seconds(), o.returned.Seconds())
	if o.err != nil {
		return text + fmt.Sprintf(": %v", o.err)
	}
	text += fmt.Sprintf(": revision %d", o.revision)
	switch o.kind {
	case get, list:
		text += fmt.Sprintf(", found %v", o.found)
	case remove:
		text += fmt.Sprintf(", removed %d", o.removed)
	case swap:
		text += fmt.Sprintf(", succeeded %v, found %v", o.succeeded, o.found)
	}
	return text
}

func (o *operation) isWrite() bool { return o.kind >= put }

// changed says whether the answer tells of a change.
func (o *operation) changed() bool {
	switch o.kind {
	case put, pair:
		return true
	case remove:
		return o.removed > 0
	case swap:
		return o.succeeded
	}
	return false
}

// recorder gathers what clients and watchers of one run saw. All of it has one clock.
type recorder struct {
	began time.Time

	mutex      sync.Mutex
	operations []*operation
	sessions   []*session
	leases     []*leaseStory
}

func newRecorder() *recorder { return &recorder{began: time.Now()} }

func (r *recorder) now() time.Duration { return time.Since(r.began) }

func (r *recorder) add(o *operation) {
	r.mutex.Lock()
	r.operations = append(r.operations, o)
	r.mutex.Unlock()
}

func (r *recorder) report() string {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	unknown, events := 0, 0
	for _, o := range r.operations {
		if o.err != nil {
			unknown++
		}
	}
	for _, s := range r.sessions {
		for _, answer := range s.answers {
			events += len(answer.events)
		}
	}
	return fmt.Sprintf("%d operations, %d without an answer; %d events in %d watches; %d leases",
		len(r.operations), unknown, events, len(r.sessions), len(r.leases))
}

// acknowledged counts the writes of a client that were called behind a time and answered.
func (r *recorder) acknowledged(client int, after time.Duration) int {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	count := 0
	for _, o := range r.operations {
		if o.client == client && o.err == nil && o.isWrite() && o.called > after {
			count++
		}
	}
	return count
}

// event is one change of one key, as a watch tells of it.
type event struct {
	version
	isDelete bool
	// What was there before, where it was asked for and is there.
	previous *version
}

// session is one watch, from its creation to its end.
type session struct {
	watcher string
	from    int64
	// previous was asked for.
	hasPrevious bool
	answers     []watchAnswer
}

// watchAnswer is one response: events, or word that all before its revision was delivered.
type watchAnswer struct {
	at         time.Duration
	revision   int64
	isProgress bool
	events     []event
}

// leaseStory is what the holder of one lease knows of it.
type leaseStory struct {
	id  int64
	ttl int64
	// No renewal that was answered was sent later than this, so the lease lived at least its TTL longer.
	renewed time.Duration
	// Somebody asked for its end, perhaps without an answer.
	wasRevoked bool
}

// Long values are kept as what tells them apart.
const valueBytesKept = 64

func shortened(value []byte) string {
	if len(value) <= valueBytesKept {
		return string(value)
	}
	return fmt.Sprintf("%s..(%d bytes, %08x)", value[:24], len(value), crc32.ChecksumIEEE(value))
}

func versionOf(kv *mvccpb.KeyValue) version {
	return version{string(kv.Key), shortened(kv.Value), kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease}
}

func versionsOf(kvs []*mvccpb.KeyValue) []version {
	var all []version
	for _, kv := range kvs {
		all = append(all, versionOf(kv))
	}
	return all
}

func eventsOf(events []*mvccpb.Event) []event {
	var all []event
	for _, each := range events {
		e := event{version: versionOf(each.Kv), isDelete: each.Type == mvccpb.Event_DELETE}
		if each.PrevKv != nil {
			previous := versionOf(each.PrevKv)
			e.previous = &previous
		}
		all = append(all, e)
	}
	return all
}

// history is all that happened to a store from one revision on, replayed from its events.
type history struct {
	// In order; those of one revision stand together.
	events []event
	// The last revision before it, and its own last one.
	first, last int64
	// So many clients made it.
	clients int
	// All versions of a key, the newest last; a deletion is one with an empty key.
	versions map[string][]version
}

// replay demands that the events are in order, that no revision is left out, and that each event says of its key what
// the events before say.
func replay(events []event) (*history, error) { return replayBehind(&history{last: 1}, events) }

// replayBehind begins with the keys that an earlier history ends with.
func replayBehind(earlier *history, events []event) (*history, error) {
	h := &history{events: events, first: earlier.last, last: earlier.last, versions: map[string][]version{}}
	for key := range earlier.versions {
		if there, isThere := earlier.at(key, earlier.last); isThere {
			h.versions[key] = []version{there}
		}
	}
	seen := map[string]bool{}
	for _, e := range events {
		switch e.modified {
		case h.last:
			if seen[e.key] || len(seen) == 0 {
				return nil, fmt.Errorf("revision %d tells of %q twice, or is the empty store's", e.modified, e.key)
			}
		case h.last + 1:
			clear(seen)
			h.last++
		default:
			return nil, fmt.Errorf("behind revision %d comes %d (%q)", h.last, e.modified, e.key)
		}
		seen[e.key] = true
		before, isThere := h.at(e.key, e.modified-1)
		switch {
		case e.isDelete && !isThere:
			return nil, fmt.Errorf("revision %d deletes %q, which is not there", e.modified, e.key)
		case !e.isDelete && isThere && (e.create != before.create || e.number != before.number+1):
			return nil, fmt.Errorf("revision %d puts %v behind %v", e.modified, e.version, before)
		case !e.isDelete && !isThere && (e.create != e.modified || e.number != 1):
			return nil, fmt.Errorf("revision %d makes %v, which was not there", e.modified, e.version)
		}
		kept := e.version
		if e.isDelete {
			kept = version{modified: e.modified}
		}
		h.versions[e.key] = append(h.versions[e.key], kept)
	}
	return h, nil
}

// at is the key as it was at a revision.
func (h *history) at(key string, revision int64) (version, bool) {
	versions := h.versions[key]
	position, _ := slices.BinarySearchFunc(versions, revision+1, func(v version, wanted int64) int {
		return int(v.modified - wanted)
	})
	if position == 0 || versions[position-1].key == "" {
		return version{}, false
	}
	return versions[position-1], true
}

// between is all events from one revision to another, both included.
func (h *history) between(first, last int64) []event {
	compare := func(e event, wanted int64) int { return int(e.modified - wanted) }
	from, _ := slices.BinarySearchFunc(h.events, first, compare)
	behind, _ := slices.BinarySearchFunc(h.events, last+1, compare)
	return h.events[from:max(from, behind)]
}
