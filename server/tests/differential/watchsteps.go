package main

import (
	"fmt"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// Steps of a run that concern watches.

func (r *run) watchRequest() *pb.WatchCreateRequest {
	request := &pb.WatchCreateRequest{PrevKv: r.percent(40), Fragment: r.percent(30), ProgressNotify: r.percent(20)}
	request.Key, request.RangeEnd = r.keyRange()
	if r.percent(20) {
		request.WatchId = pick[int64](r.generator, 1, 2, 3, 4, 5, 6, 100, -1, -2, 1<<63-1, -1<<63)
	}
	if r.percent(20) {
		request.Filters = pick(r.generator, []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT},
			[]pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NODELETE},
			[]pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT, pb.WatchCreateRequest_NODELETE},
			[]pb.WatchCreateRequest_FilterType{7})
	}
	switch chance := r.Float64() * 100; {
	case chance < 40:
		request.StartRevision = r.pastRevision()
		if r.isCompacting {
			// What a watcher finds at the compacted revision itself depends on how far the removal is.
			request.StartRevision = max(request.StartRevision, r.compacted+1)
		}
	case chance < 45:
		request.StartRevision = r.current + 1 + r.Int64N(50)
	case chance < 50:
		request.StartRevision = pick(r.generator, -1, 1, r.compacted-1, r.compacted/2)
	}
	return request
}

func (r *run) anyStream() (*watchStream, error) {
	if len(r.watches.streams) < streamsMax && (len(r.watches.streams) == 0 || r.percent(10)) {
		stream, err := r.watches.newStream()
		if err != nil {
			return nil, err
		}
		r.watches.streams = append(r.watches.streams, stream)
		return stream, nil
	}
	return pick(r.generator, r.watches.streams...), nil
}

func (r *run) watchCreate() error {
	stream, err := r.anyStream()
	if err != nil {
		return err
	}
	if len(stream.watchers) >= watchersMax {
		return r.watchCancel()
	}
	if err := r.watches.advance(r.current); err != nil {
		return err
	}
	create := r.watchRequest()
	request := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}}
	if err := stream.send(request); err != nil {
		return err
	}
	created, err := stream.controlled(request)
	if err != nil {
		return err
	}
	if r.verbose {
		fmt.Printf("step %d: watch { %v } -> %v\n", r.step, create, created)
	}
	if created.Canceled {
		r.refused++
		return nil
	}
	added := &watcher{id: created.WatchId, request: create, start: create.StartRevision}
	stream.watchers = append(stream.watchers, added)
	switch {
	case added.start == 0:
		added.start = r.current + 1
	case added.start < r.compacted:
		canceled, err := stream.controlled(request)
		if err != nil {
			return err
		}
		if canceled.CompactRevision != r.compacted {
			return fmt.Errorf("both servers answer %v to a watch from %d, compacted is %d",
				canceled, added.start, r.compacted)
		}
		added.isCompacted = true
	case added.start <= r.current:
		added.expected = added.wanted(readable(r.watches.history, r.compacted))
		if len(added.expected) == 0 {
			r.watches.unsyncedAt = time.Now()
		}
	}
	return nil
}

// readable returns the events from the compacted revision on. At that revision itself it drops the events that a later
// one of the same key supersedes.
func readable(history []*mvccpb.Event, compacted int64) []*mvccpb.Event {
	first, _ := slices.BinarySearchFunc(history, compacted, func(event *mvccpb.Event, revision int64) int {
		return int(min(1, max(-1, event.Kv.ModRevision-revision)))
	})
	var kept []*mvccpb.Event
	for i := first; i < len(history); i++ {
		isSameKey := func(later *mvccpb.Event) bool {
			return later.Kv.ModRevision == compacted && string(later.Kv.Key) == string(history[i].Kv.Key)
		}
		laterOnes := history[i+1 : min(len(history), i+300)]
		isSuperseded := history[i].Kv.ModRevision == compacted && slices.ContainsFunc(laterOnes, isSameKey)
		if !isSuperseded {
			kept = append(kept, history[i])
		}
	}
	return kept
}

func (r *run) watchCancel() error {
	if len(r.watches.streams) == 0 {
		return nil
	}
	stream := pick(r.generator, r.watches.streams...)
	if err := r.watches.advance(r.current); err != nil {
		return err
	}
	if err := r.watches.drainStream(stream); err != nil {
		return err
	}
	id := int64(12345)
	at := -1
	if len(stream.watchers) > 0 && r.percent(90) {
		at = r.IntN(len(stream.watchers))
		id = stream.watchers[at].id
	}
	cancel := &pb.WatchCancelRequest{WatchId: id}
	request := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: cancel}}
	if err := stream.send(request); err != nil || at < 0 {
		return err // an unknown id is not answered
	}
	stream.watchers = slices.Delete(stream.watchers, at, at+1)
	canceled, err := stream.controlled(request)
	if r.verbose {
		fmt.Printf("step %d: cancel watch %d -> %v\n", r.step, id, canceled)
	}
	return err
}

// watchProgress asks how far a stream is. etcd answers only if all its watchers have caught up and none waits for a
// revision to come. Watchers that have yet to catch up do so soon, so the question is put again until it is answered.
func (r *run) watchProgress() error {
	if len(r.watches.streams) == 0 {
		return nil
	}
	stream := pick(r.generator, r.watches.streams...)
	if err := r.watches.advance(r.current); err != nil {
		return err
	}
	if err := r.watches.drainStream(stream); err != nil {
		return err
	}
	isAnswered := len(stream.watchers) > 0
	for _, watcher := range stream.watchers {
		if watcher.isCompacted || watcher.request.StartRevision > r.current {
			isAnswered = false
		}
	}
	progress := &pb.WatchProgressRequest{}
	request := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: progress}}
	if !isAnswered {
		return stream.send(request)
	}
	stream.lateProgress = 0
	for side := range stream.sides {
		var answers []*pb.WatchResponse
		deadline := time.Now().Add(watchDeadline)
		for asked := 0; len(answers) == 0; asked++ {
			if time.Now().After(deadline) {
				return fmt.Errorf("%s: no progress after %d requests", sideNames[side], asked)
			}
			if err := stream.sides[side].stream.Send(request); err != nil {
				return err
			}
			stream.lateProgress = max(stream.lateProgress, asked)
			again := time.Now().Add(syncPause)
			for len(answers) == 0 && time.Now().Before(again) {
				answers = stream.sides[side].takeProgress()
				time.Sleep(time.Millisecond)
			}
		}
		for _, answer := range answers {
			isRight := answer.WatchId == -1 &&
				answer.Header.GetRevision() == r.current && answer.Header.GetClusterId() != 0 &&
				answer.CompactRevision == 0 && answer.CancelReason == "" && !answer.Fragment
			if !isRight {
				return fmt.Errorf("%s: at revision %d, progress is %v", sideNames[side], r.current, answer)
			}
		}
	}
	return nil
}

// watchNothing sends a request without content, which is ignored.
func (r *run) watchNothing() error {
	if len(r.watches.streams) == 0 {
		return nil
	}
	return pick(r.generator, r.watches.streams...).send(&pb.WatchRequest{})
}

func (r *run) watchClose() error {
	if len(r.watches.streams) == 0 {
		return nil
	}
	at := r.IntN(len(r.watches.streams))
	stream := r.watches.streams[at]
	if err := r.watches.advance(r.current); err != nil {
		return err
	}
	if err := r.watches.drainStream(stream); err != nil {
		return err
	}
	r.watches.streams = slices.Delete(r.watches.streams, at, at+1)
	return stream.close()
}
