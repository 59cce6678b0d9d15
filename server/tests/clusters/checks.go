package main

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// checkAll judges what clients and watchers recorded by the history that the members agree on in the end.
func checkAll(h *history, r *recorder) error {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	errs := []error{
		checkWrites(h, r.operations),
		checkOrigins(h, r.operations),
		checkReads(h, r.operations),
		checkRealTime(r.operations),
		checkLinearizable(h, r.operations),
		checkLeases(r.leases, r.sessions),
	}
	for _, s := range r.sessions {
		errs = append(errs, checkSession(h, s))
	}
	return errors.Join(errs...)
}

// checkWrites looks for each acknowledged write in the history, at the revision that it was told.
func checkWrites(h *history, operations []*operation) error {
	for _, o := range operations {
		if o.err != nil || !o.isWrite() {
			continue
		}
		if !o.changed() {
			if err := checkUnchanged(h, o); err != nil {
				return err
			}
			continue
		}
		events := h.between(o.revision, o.revision)
		if len(events) != len(o.keys) {
			return fmt.Errorf("%v\n  changed %d keys, and the events of its revision are %v", o, len(o.keys), events)
		}
		for _, key := range o.keys {
			at := slices.IndexFunc(events, func(e event) bool { return e.key == key })
			isSame := func(e event) bool {
				return e.isDelete == (o.kind == remove) && e.value == o.value && e.lease == o.lease
			}
			if at < 0 || !isSame(events[at]) {
				return fmt.Errorf("%v\n  was acknowledged and is not among the events of its revision: %v", o, events)
			}
		}
		if o.kind == swap {
			if before, _ := h.at(o.keys[0], o.revision-1); before.modified != o.demanded {
				return fmt.Errorf("%v\n  succeeded over %v", o, before)
			}
		}
	}
	return nil
}

// checkUnchanged judges a write that says it changed nothing.
func checkUnchanged(h *history, o *operation) error {
	there, isThere := h.at(o.keys[0], o.revision)
	switch {
	case o.kind == remove && isThere:
		return fmt.Errorf("%v\n  found nothing, where there is %v", o, there)
	case o.kind == swap && there.modified == o.demanded:
		return fmt.Errorf("%v\n  failed, and its demand holds", o)
	case o.kind == swap:
		return checkFound(h, o, o.keys[0], o.found)
	}
	return nil
}

// checkOrigins finds the one write behind each event, and none twice. Deletions of keys with a lease come from there.
func checkOrigins(h *history, operations []*operation) error {
	writes := map[string]*operation{}
	removals := map[string]int{}
	for _, o := range operations {
		switch {
		case o.kind == remove && (o.err != nil || o.removed > 0):
			removals[o.keys[0]]++
		case o.value != "":
			writes[o.value] = o
		}
	}
	revisions := map[string]int64{}
	for _, e := range h.events {
		if e.isDelete {
			before, _ := h.at(e.key, e.modified-1)
			if before.lease != 0 {
				continue
			}
			if removals[e.key]--; removals[e.key] < 0 {
				return fmt.Errorf("revision %d deletes %q, which nobody asked for", e.modified, e.key)
			}
			continue
		}
		o := writes[e.value]
		if o == nil || !slices.Contains(o.keys, e.key) {
			return fmt.Errorf("revision %d puts %v, which nobody asked for", e.modified, e.version)
		}
		if earlier := revisions[e.value]; earlier != 0 && earlier != e.modified {
			return fmt.Errorf("%v\n  happened twice, at revisions %d and %d", o, earlier, e.modified)
		}
		if o.err == nil && !o.changed() {
			return fmt.Errorf("%v\n  happened at revision %d", o, e.modified)
		}
		revisions[e.value] = e.modified
	}
	return nil
}

// checkReads compares each read, whoever answered it, with the store at the revision that the answer names.
func checkReads(h *history, operations []*operation) error {
	for _, o := range operations {
		if o.err != nil || o.isWrite() {
			continue
		}
		if o.revision > h.last {
			return fmt.Errorf("%v\n  is from the future: the last revision is %d", o, h.last)
		}
		keys := o.keys
		if o.kind == list {
			for i := range modelKeys {
				keys = append(keys, modelKey(i))
			}
		}
		for _, key := range keys {
			var found []version
			for _, each := range o.found {
				if each.key == key {
					found = append(found, each)
				}
			}
			if err := checkFound(h, o, key, found); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkFound(h *history, o *operation, key string, found []version) error {
	there, isThere := h.at(key, o.revision)
	if len(found) > 1 || (len(found) == 1) != isThere || (isThere && found[0] != there) {
		return fmt.Errorf("%v\n  but %q was %v", o, key, there)
	}
	return nil
}

// checkRealTime demands that what is called behind an answer knows its revision. Porcupine finds that, too; this names
// the two operations.
func checkRealTime(operations []*operation) error {
	var judged []*operation
	for _, o := range operations {
		if o.err == nil && !o.isSerializable {
			judged = append(judged, o)
		}
	}
	byReturn := slices.Clone(judged)
	slices.SortFunc(judged, func(one, other *operation) int { return int(one.called - other.called) })
	slices.SortFunc(byReturn, func(one, other *operation) int { return int(one.returned - other.returned) })
	var newest *operation
	at := 0
	for _, o := range judged {
		for ; at < len(byReturn) && byReturn[at].returned < o.called; at++ {
			if newest == nil || byReturn[at].revision > newest.revision {
				newest = byReturn[at]
			}
		}
		if newest != nil && (o.revision < newest.revision || (o.changed() && o.revision == newest.revision)) {
			return fmt.Errorf("%v\n  was called behind the answer of\n  %v", o, newest)
		}
	}
	return nil
}

// checkSession judges one watch: its events are those of the history from its beginning on, in order, each once, and
// those of one revision in one response. Behind word of progress comes nothing that it covers.
func checkSession(h *history, s *session) error {
	next := s.from
	for _, answer := range s.answers {
		if answer.isProgress {
			if answer.revision > h.last {
				return fmt.Errorf("%s from %d: progress at %d, and the last revision is %d", s.watcher, s.from,
					answer.revision, h.last)
			}
			if missing := h.between(next, answer.revision); len(missing) > 0 {
				return fmt.Errorf("%s from %d: progress at %d, and these were not told: %v", s.watcher, s.from,
					answer.revision, missing[:min(len(missing), 5)])
			}
			next = max(next, answer.revision+1)
			continue
		}
		if len(answer.events) == 0 {
			continue
		}
		last := answer.events[len(answer.events)-1].modified
		wanted := h.between(next, last)
		for i, got := range answer.events {
			if i >= len(wanted) {
				return fmt.Errorf("%s from %d: an event too much behind revision %d: %v", s.watcher, s.from, next, got)
			}
			if err := checkEvent(h, s, got, wanted[i]); err != nil {
				return err
			}
		}
		if len(wanted) > len(answer.events) {
			return fmt.Errorf("%s from %d: a response up to revision %d leaves out %v", s.watcher, s.from, last,
				wanted[len(answer.events)])
		}
		if answer.revision < last {
			return fmt.Errorf("%s from %d: a response of revision %d tells of revision %d", s.watcher, s.from,
				answer.revision, last)
		}
		next = last + 1
	}
	return nil
}

func checkEvent(h *history, s *session, got, wanted event) error {
	if got.version != wanted.version || got.isDelete != wanted.isDelete {
		return fmt.Errorf("%s from %d: told of %v where the history has %v", s.watcher, s.from, got, wanted)
	}
	before, isThere := h.at(got.key, got.modified-1)
	if !s.hasPrevious {
		isThere = false
	}
	if (got.previous != nil) != isThere || (isThere && *got.previous != before) {
		return fmt.Errorf("%s from %d: told %v behind %v, which was %v", s.watcher, s.from, got, got.previous, before)
	}
	return nil
}

// checkLeases demands that no lease ends before its time: a deletion that a watcher had been told of before the TTL had
// gone since the last answered renewal was sent. That time is a bound from below, however slow the machine is.
func checkLeases(leases []*leaseStory, sessions []*session) error {
	stories := map[int64]*leaseStory{}
	for _, story := range leases {
		stories[story.id] = story
	}
	holders := map[string]int64{}
	for _, s := range sessions {
		clear(holders)
		for _, answer := range s.answers {
			for _, e := range answer.events {
				if !e.isDelete {
					holders[e.key] = e.lease
					continue
				}
				story := stories[holders[e.key]]
				if story == nil || story.wasRevoked {
					continue
				}
				if end := story.renewed + time.Duration(story.ttl)*time.Second; answer.at < end {
					return fmt.Errorf("lease %x, renewed at %v for %d s, was gone at %v: %v", story.id, story.renewed,
						story.ttl, answer.at, e)
				}
			}
		}
	}
	return nil
}
