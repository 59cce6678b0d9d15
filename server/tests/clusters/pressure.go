package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// Requests at a time: as many wait while nobody answers, and those behind them are late.
	pressureCallers = 200
	// Four of five requests put, all of them keys of these.
	pressureKeys    = 500
	pressurePadding = 100
	// A request is slow that is answered later than this behind the time at which it was due.
	slowRequest = time.Second
	// Without an acknowledged write for longer than this, the cluster is unavailable for all of that time.
	writeGap = 100 * time.Millisecond
	// Such times are told one by one.
	longGap = 500 * time.Millisecond
)

// pressure is a load at a fixed rate by one client of all members that it is told of. What it asks is judged as all
// else is.
type pressure struct {
	client   *clientv3.Client
	recorder *recorder
	stop     context.CancelFunc
	calls    sync.WaitGroup
}

func startPressure(ctx context.Context, t *traffic, rate int) (*pressure, error) {
	client, err := newClient(urlsOf(t.cluster.members)...)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	p := &pressure{client: client, recorder: t.recorder, stop: stop}
	due := make(chan time.Time)
	for range pressureCallers {
		t.mutex.Lock()
		c := t.newCaller(client)
		t.mutex.Unlock()
		p.calls.Go(func() { p.run(ctx, c, due) })
	}
	p.calls.Go(func() { keepTime(ctx, rate, due) })
	return p, nil
}

// keepTime says when requests are due. Where all callers wait for answers, they learn of it late.
func keepTime(ctx context.Context, rate int, due chan<- time.Time) {
	defer close(due)
	began := time.Now()
	for number := 0; ; number++ {
		next := began.Add(time.Duration(number) * time.Second / time.Duration(rate))
		if pause(ctx, time.Until(next)); ctx.Err() != nil {
			return
		}
		select {
		case due <- next:
		case <-ctx.Done():
			return
		}
	}
}

func urlsOf(members []*member) []string {
	var urls []string
	for _, m := range members {
		urls = append(urls, m.clientURL)
	}
	return urls
}

func (p *pressure) run(ctx context.Context, c *caller, due <-chan time.Time) {
	for at := range due {
		o := &operation{
			kind: put, keys: []string{fmt.Sprint("pressure/", c.random.IntN(pressureKeys))}, isFiller: true,
			padding: pressurePadding, due: at.Sub(p.recorder.began),
		}
		if c.random.IntN(5) == 0 {
			o.kind = get
		}
		c.do(ctx, o)
	}
}

// speaksTo gives the client other members. Connections to those that are left out end when they are idle.
func (p *pressure) speaksTo(members ...*member) { p.client.SetEndpoints(urlsOf(members)...) }

func (p *pressure) end() {
	p.stop()
	p.calls.Wait()
	p.client.Close()
}

// service is how requests went.
type service struct {
	requests, failed, slow int
	slowest                time.Duration
	// The first few errors, with their number.
	errors map[string]int
	// Times without an acknowledged write, where they are long.
	gaps []gap
}

type gap struct{ from, length time.Duration }

// serviceOf looks at the requests of the pressure, and at the writes of all.
func serviceOf(r *recorder, from, until time.Duration) service {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	s := service{errors: map[string]int{}}
	written := []time.Duration{from, until}
	for _, o := range r.operations {
		if o.returned < from || o.returned > until {
			continue
		}
		if o.isWrite() && o.err == nil {
			written = append(written, o.returned)
		}
		if o.due == 0 {
			continue
		}
		s.requests++
		took := o.returned - o.due
		s.slowest = max(s.slowest, took)
		switch {
		case o.err != nil:
			s.failed++
			s.errors[o.err.Error()]++
		case took > slowRequest:
			s.slow++
		}
	}
	slices.Sort(written)
	for i, at := range written[1:] {
		if length := at - written[i]; length > writeGap {
			s.gaps = append(s.gaps, gap{written[i], length})
		}
	}
	return s
}

func (s service) unavailable() time.Duration {
	sum := time.Duration(0)
	for _, gap := range s.gaps {
		sum += gap.length
	}
	return sum
}

func (s service) String() string {
	text := fmt.Sprintf("%d requests at a fixed rate: %d failed, %d took longer than %v, the slowest %v; "+
		"unavailable for %v in all (times of more than %v without an acknowledged write)",
		s.requests, s.failed, s.slow, slowRequest, s.slowest.Round(time.Millisecond),
		s.unavailable().Round(time.Millisecond), writeGap)
	for _, gap := range s.gaps {
		length, from := gap.length.Round(time.Millisecond), gap.from.Seconds()
		if length < longGap {
			continue
		}
		text += fmt.Sprintf("\n    no write for %v from %.2f s on", length, from)
	}
	for message, count := range s.errors {
		text += fmt.Sprintf("\n    failed %d times: %s", count, message)
	}
	return text
}
