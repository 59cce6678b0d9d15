package main

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// state is the sequential store that porcupine plays operations against. Revisions only have to grow from one to the
// next, since leases and fillers take some that no operation of the model has.
type state struct {
	revision int64
	keys     [modelKeys]held
}

// held is what a key has; nothing if its revision is 0.
type held struct {
	modified int64
	value    string
}

// Porcupine is given so long; a history that it cannot decide is an error.
const searchTime = 2 * time.Minute

// checkLinearizable judges all operations of the model but serializable reads. As in etcd's robustness tests, the
// fate of a write without an answer is looked up in the history: one whose value is there happened, at that revision
// and perhaps long behind its caller's patience, and one whose value is not did not.
func checkLinearizable(h *history, operations []*operation) error {
	var all []porcupine.Operation
	add := func(o *operation, returned int64) {
		all = append(all, porcupine.Operation{
			ClientId: o.client, Input: o, Output: o, Call: int64(o.called), Return: returned,
		})
	}
	for _, o := range operations {
		switch {
		case o.isFiller || o.isSerializable:
		case o.err == nil:
			add(o, int64(o.returned))
		case o.isWrite() && o.kind != remove:
			if resolved := resolve(h, o); resolved != nil {
				add(resolved, math.MaxInt64)
			}
		}
	}
	for _, o := range resolveRemovals(h, operations) {
		add(o, math.MaxInt64)
	}
	model := porcupine.Model{
		Init: func() any { return firstState(h) },
		Step: func(before, input, _ any) (bool, any) {
			return step(before.(state), input.(*operation))
		},
		DescribeOperation: func(input, _ any) string { return input.(*operation).String() },
	}
	result, found := porcupine.CheckOperationsVerbose(model, all, searchTime)
	switch result {
	case porcupine.Ok:
		return nil
	case porcupine.Unknown:
		return fmt.Errorf("porcupine did not decide on %d operations in %v", len(all), searchTime)
	}
	return fmt.Errorf("the history is not linearizable; %s", stuck(found, all))
}

// firstState is what was there before the history.
func firstState(h *history) state {
	s := state{revision: h.first}
	for i := range s.keys {
		if there, isThere := h.at(modelKey(i), h.first); isThere {
			s.keys[i] = held{there.modified, there.value}
		}
	}
	return s
}

// stuck names the first operations by call that the longest order found leaves out.
func stuck(found porcupine.LinearizationInfo, all []porcupine.Operation) string {
	ordered := map[int]bool{}
	length := 0
	for _, partition := range found.PartialLinearizations() {
		for _, order := range partition {
			if len(order) > length {
				length = len(order)
				clear(ordered)
				for _, position := range order {
					ordered[position] = true
				}
			}
		}
	}
	var rest []*operation
	for position, o := range all {
		if !ordered[position] {
			rest = append(rest, o.Input.(*operation))
		}
	}
	slices.SortFunc(rest, func(one, other *operation) int { return int(one.called - other.called) })
	text := fmt.Sprintf("%d of %d can be put in order, and none of these behind them:", length, len(all))
	for _, o := range rest[:min(len(rest), 10)] {
		text += "\n  " + o.String()
	}
	return text
}

// resolve gives a write without an answer the one that the history proves, or nil.
func resolve(h *history, o *operation) *operation {
	for _, each := range h.versions[o.keys[0]] {
		if each.value == o.value && each.key != "" {
			resolved := *o
			resolved.revision, resolved.succeeded, resolved.err = each.modified, true, nil
			return &resolved
		}
	}
	return nil
}

// resolveRemovals finds removals without an answer behind the deletions that no other removal claims. Deletions have no
// value that tells whose they are. The first deletion of a key is taken for the first removal that was called, and so
// on: if any choice puts all behind their calls, this one does. Removals that are left changed nothing.
func resolveRemovals(h *history, operations []*operation) []*operation {
	claimed := map[int64]bool{}
	unknown := map[string][]*operation{}
	for _, o := range operations {
		switch {
		case o.kind != remove || o.isFiller:
		case o.err == nil:
			claimed[o.revision] = claimed[o.revision] || o.removed > 0
		default:
			unknown[o.keys[0]] = append(unknown[o.keys[0]], o)
		}
	}
	for _, each := range unknown {
		slices.SortFunc(each, func(one, other *operation) int { return int(one.called - other.called) })
	}
	var all []*operation
	for _, e := range h.events {
		if !e.isDelete || claimed[e.modified] || len(unknown[e.key]) == 0 {
			continue
		}
		resolved := *unknown[e.key][0]
		unknown[e.key] = unknown[e.key][1:]
		resolved.revision, resolved.removed, resolved.err = e.modified, 1, nil
		all = append(all, &resolved)
	}
	return all
}

// step says whether the store answers so, and what it is then.
func step(s state, o *operation) (bool, state) {
	lowest := s.revision
	if o.changed() {
		lowest++
	}
	if o.revision < lowest {
		return false, s
	}
	s.revision = o.revision
	switch o.kind {
	case get:
		return s.matches(o.keys[0], o.found), s
	case list:
		return s.matchesAll(o.found), s
	case remove:
		at := keyPosition(o.keys[0])
		if (s.keys[at].modified != 0) != (o.removed == 1) {
			return false, s
		}
		s.keys[at] = held{}
	case swap:
		isAsDemanded := s.keys[keyPosition(o.keys[0])].modified == o.demanded
		if isAsDemanded != o.succeeded {
			return false, s
		}
		if !o.succeeded {
			return s.matches(o.keys[0], o.found), s
		}
	}
	if o.changed() && o.kind != remove {
		for _, key := range o.keys {
			s.keys[keyPosition(key)] = held{o.revision, o.value}
		}
	}
	return true, s
}

func (s *state) matches(key string, found []version) bool {
	held := s.keys[keyPosition(key)]
	if held.modified == 0 {
		return len(found) == 0
	}
	return len(found) == 1 && found[0].modified == held.modified && found[0].value == held.value
}

func (s *state) matchesAll(found []version) bool {
	for i := range s.keys {
		key := modelKey(i)
		at := slices.IndexFunc(found, func(v version) bool { return v.key == key })
		var one []version
		if at >= 0 {
			one = found[at : at+1]
		}
		if !s.matches(key, one) {
			return false
		}
	}
	return true
}

func keyPosition(key string) int {
	position, err := strconv.Atoi(strings.TrimPrefix(key, modelPrefix))
	if err != nil || position >= modelKeys {
		panic(fmt.Sprintf("%q is no key of the model", key))
	}
	return position
}
