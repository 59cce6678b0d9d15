package main

import (
	"errors"
	"slices"
	"testing"
	"time"
)

// A history that is read in two parts is the same as one that is read at once.
func TestHistoryGoesOnBehindAnEarlierOne(t *testing.T) {
	run := truth(t)
	events := slices.Clone(run.events)
	for i := range events {
		events[i].previous = nil
	}
	whole, err := replay(events)
	if err != nil {
		t.Fatal(err)
	}
	for cut := range events {
		if cut > 0 && events[cut-1].modified == events[cut].modified {
			continue
		}
		earlier, err := replay(events[:cut])
		if err != nil {
			t.Fatal(err)
		}
		later, err := replayBehind(earlier, events[cut:])
		if err != nil {
			t.Fatalf("behind %d events: %v", cut, err)
		}
		if err := later.judges(run); err != nil {
			t.Fatalf("behind %d events: %v", cut, err)
		}
		for key := range whole.versions {
			wanted, isWanted := whole.at(key, whole.last)
			got, isThere := later.at(key, later.last)
			if got != wanted || isThere != isWanted {
				t.Fatalf("behind %d events %q is %v, not %v", cut, key, got, wanted)
			}
		}
		if cut+1 < len(events) && events[cut+1].modified > events[cut].modified {
			if _, err := replayBehind(earlier, events[cut+1:]); err == nil {
				t.Fatalf("event %d is left out, and nobody minds", cut)
			}
		}
	}
}

// judges looks at the operations behind the first events, and at those that may have happened there.
func (h *history) judges(run *account) error {
	var later []*operation
	for _, o := range run.operations {
		var happened *operation
		if o.isWrite() {
			happened = resolve(h, o)
		}
		if o.revision > h.first || o.err != nil && (happened == nil || happened.revision > h.first) {
			later = append(later, o)
		}
	}
	return checkLinearizable(h, later)
}

func TestServiceCountsFailuresSlownessAndGaps(t *testing.T) {
	ms := time.Millisecond
	put := func(due, returned time.Duration, err error) *operation {
		return &operation{kind: put, due: due, called: due, returned: returned, err: err}
	}
	r := &recorder{operations: []*operation{
		put(1*ms, 2*ms, nil),
		put(90*ms, 95*ms, errors.New("refused")),
		put(100*ms, 400*ms, nil),
		put(100*ms, 1200*ms, nil),
		{kind: get, due: 500 * ms, returned: 501 * ms},
		// Of other clients: a write counts against gaps alone.
		put(0, 1250*ms, nil),
		put(1300*ms, 5000*ms, nil),
	}}
	s := serviceOf(r, 0, 1300*ms)
	if s.requests != 5 || s.failed != 1 || s.slow != 1 || s.slowest != 1100*ms {
		t.Errorf("%+v", s)
	}
	if s.unavailable() != (398+800)*ms || len(s.gaps) != 2 {
		t.Errorf("gaps %v", s.gaps)
	}
}
