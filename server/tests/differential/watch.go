package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

const (
	watchMethod = "/etcdserverpb.Watch/Watch"
	streamsMax  = 4
	watchersMax = 12
	// How long etcd may take to find that an old watcher has nothing to catch up on: three turns of its loop.
	syncPause     = 300 * time.Millisecond
	watchDeadline = 20 * time.Second
)

// watchSet is all watches of a run. The servers may batch events differently, so batches are not compared. Three things
// are: the sequence of each watcher's events, the sequence of each stream's control answers (created, canceled), and
// progress when it is asked for.
//
// One more stream on each server watches everything from the first revision. Its events, in etcd's order, tell what
// each watcher must get. So it is known when nothing more is to come.
type watchSet struct {
	servers [2]*server
	log     *watchStream
	history []*mvccpb.Event
	streams []*watchStream
	// When the last watcher was made that etcd may need time to see as caught up.
	unsyncedAt time.Time
	delivered  int
}

// watchStream is one stream on each server, with the same requests.
type watchStream struct {
	sides    [2]*watchSide
	watchers []*watcher
	// Answers that may still come because a request was sent more than once.
	lateProgress int
}

// watcher is a watcher that both servers know by the same id.
type watcher struct {
	id      int64
	request *pb.WatchCreateRequest
	start   int64
	// What it must deliver that has not been compared yet.
	expected []*mvccpb.Event
	// The server has canceled it for a compaction; it keeps the id until the client cancels, too.
	isCompacted bool
}

// watchSide is a stream on one server and what came of it.
type watchSide struct {
	stream  grpc.BidiStreamingClient[pb.WatchRequest, pb.WatchResponse]
	cancel  context.CancelFunc
	control chan *pb.WatchResponse

	mu       sync.Mutex
	events   map[int64]*sequence
	progress []*pb.WatchResponse
	broken   error
	isClosed bool
}

type sequence struct {
	events     []*mvccpb.Event
	newest     int64
	inFragment bool
}

func openKeepAlive(s *server) (grpc.BidiStreamingClient[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse], error) {
	return pb.NewLeaseClient(s.conn).LeaseKeepAlive(context.Background())
}

func openWatch(s *server) (*watchSide, error) {
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := pb.NewWatchClient(s.conn).Watch(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	side := &watchSide{
		stream:  stream,
		cancel:  cancel,
		control: make(chan *pb.WatchResponse, 1000),
		events:  map[int64]*sequence{},
	}
	go func() {
		for {
			response, err := stream.Recv()
			side.mu.Lock()
			if err == nil {
				err = side.take(response)
			}
			if err != nil {
				if !side.isClosed {
					side.broken = err
				}
				side.mu.Unlock()
				return
			}
			side.mu.Unlock()
		}
	}()
	return side, nil
}

// take sorts a response in. It also checks what a client may rely on however events are batched.
func (s *watchSide) take(response *pb.WatchResponse) error {
	id := response.WatchId
	if response.Created || response.Canceled {
		if len(response.Events) != 0 {
			return fmt.Errorf("events in a control answer: %v", response)
		}
		if response.Created && !response.Canceled {
			s.events[id] = &sequence{}
		}
		s.control <- response
		return nil
	}
	if len(response.Events) == 0 {
		s.progress = append(s.progress, response)
		return nil
	}
	sequence := s.events[id]
	if sequence == nil {
		return fmt.Errorf("events for watcher %d before it was created", id)
	}
	for i, event := range response.Events {
		isSplit := event.Kv.ModRevision == sequence.newest && i == 0 && !sequence.inFragment
		if event.Kv.ModRevision < sequence.newest || isSplit {
			return fmt.Errorf("watcher %d: revision %d comes in two answers, or backwards: %s",
				id, event.Kv.ModRevision, show(response))
		}
		sequence.newest = event.Kv.ModRevision
	}
	if response.GetHeader().GetRevision() < sequence.newest {
		return fmt.Errorf("watcher %d: header.revision %d with an event of %d",
			id, response.Header.Revision, sequence.newest)
	}
	sequence.inFragment = response.Fragment
	sequence.events = append(sequence.events, response.Events...)
	return nil
}

// state returns how many events of a watcher wait for comparison, their newest revision, and what broke the stream.
func (s *watchSide) state(id int64) (int, int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sequence := s.events[id]; sequence != nil {
		return len(sequence.events), sequence.newest, s.broken
	}
	return 0, 0, s.broken
}

func (s *watchSide) takeEvents(id int64) (events []*mvccpb.Event, inFragment bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sequence := s.events[id]
	if sequence == nil {
		return nil, false
	}
	events, sequence.events = sequence.events, nil
	return events, sequence.inFragment
}

func (s *watchSide) takeProgress() []*pb.WatchResponse {
	s.mu.Lock()
	defer s.mu.Unlock()
	progress := s.progress
	s.progress = nil
	return progress
}

// await polls until isDone is true on both sides. The error of a broken stream or a missed deadline names the side.
func await(what func() string, isDone func(side int) (bool, error)) error {
	deadline := time.Now().Add(watchDeadline)
	for side := range 2 {
		for {
			done, err := isDone(side)
			if err != nil {
				return fmt.Errorf("%s: watch stream: %w", sideNames[side], err)
			}
			if done {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("%s: after %v still no %s", sideNames[side], watchDeadline, what())
			}
			time.Sleep(time.Millisecond)
		}
	}
	return nil
}

func (w *watchSet) newStream() (*watchStream, error) {
	stream := &watchStream{}
	for side, server := range w.servers {
		var err error
		if stream.sides[side], err = openWatch(server); err != nil {
			return nil, fmt.Errorf("%s: %w", sideNames[side], err)
		}
	}
	return stream, nil
}

func (s *watchStream) send(request *pb.WatchRequest) error {
	for side := range s.sides {
		if err := s.sides[side].stream.Send(request); err != nil {
			return fmt.Errorf("%s: watch stream: %w", sideNames[side], err)
		}
	}
	return nil
}

// controlled takes the next control answer of both sides and compares.
func (s *watchStream) controlled(request *pb.WatchRequest) (*pb.WatchResponse, error) {
	var answers [2]*pb.WatchResponse
	texts := [2]string{"no answer", "no answer"}
	for side := range s.sides {
		select {
		case answers[side] = <-s.sides[side].control:
			texts[side] = show(answers[side])
		case <-time.After(watchDeadline):
		}
		if _, _, err := s.sides[side].state(0); err != nil {
			texts[side] = err.Error()
		}
	}
	if answers[etcd] == nil && answers[orlop] == nil {
		return nil, fmt.Errorf("no server answers %v", request)
	}
	isEqual := answers[etcd] != nil && answers[orlop] != nil
	if isEqual {
		one, other := proto.Clone(answers[etcd]), proto.Clone(answers[orlop])
		maskHeaders(one.ProtoReflect())
		maskHeaders(other.ProtoReflect())
		isEqual = proto.Equal(one, other)
	}
	if !isEqual {
		return nil, &difference{method: watchMethod, request: request, reason: "answers differ", sides: texts}
	}
	return answers[etcd], nil
}

func (s *watchStream) close() error {
	for side := range s.sides {
		select {
		case answer := <-s.sides[side].control:
			return fmt.Errorf("%s: unasked on a watch stream: %s", sideNames[side], show(answer))
		default:
		}
		s.sides[side].mu.Lock()
		s.sides[side].isClosed = true
		s.sides[side].mu.Unlock()
		s.sides[side].cancel()
	}
	return nil
}

// open starts the watch of everything, after the last revision it has seen.
func (w *watchSet) open(servers [2]*server) error {
	w.servers = servers
	next := int64(2)
	if len(w.history) > 0 {
		next = w.history[len(w.history)-1].Kv.ModRevision + 1
	}
	var err error
	if w.log, err = w.newStream(); err != nil {
		return err
	}
	create := &pb.WatchCreateRequest{Key: []byte{0}, RangeEnd: []byte{0}, StartRevision: next, PrevKv: true}
	request := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}}
	if err := w.log.send(request); err != nil {
		return err
	}
	_, err = w.log.controlled(request)
	return err
}

func (w *watchSet) closeAll() error {
	var errs []error
	for _, stream := range append(w.streams, w.log) {
		errs = append(errs, stream.close())
	}
	w.streams, w.log = nil, nil
	return errors.Join(errs...)
}

// advance waits until the watch of everything has come to the revision, and tells each watcher what it must have got.
func (w *watchSet) advance(revision int64) error {
	newest := int64(1)
	if len(w.history) > 0 {
		newest = w.history[len(w.history)-1].Kv.ModRevision
	}
	if newest >= revision {
		return nil
	}
	err := await(func() string { return fmt.Sprintf("event of revision %d", revision) }, func(side int) (bool, error) {
		_, newest, err := w.log.sides[side].state(0)
		return newest >= revision, err
	})
	if err != nil {
		return err
	}
	events, err := w.compareEvents(w.log, 0, nil)
	if err != nil {
		return err
	}
	w.history = append(w.history, events...)
	for _, stream := range w.streams {
		for _, watcher := range stream.watchers {
			watcher.expected = append(watcher.expected, watcher.wanted(events)...)
		}
	}
	return nil
}

// compareEvents takes the events that both sides have got for a watcher. They must be the same. If of is given, they
// must also be the ones it expects.
func (w *watchSet) compareEvents(stream *watchStream, id int64, of *watcher) ([]*mvccpb.Event, error) {
	var got [2][]*mvccpb.Event
	for side := range got {
		events, inFragment := stream.sides[side].takeEvents(id)
		if inFragment {
			return nil, fmt.Errorf("%s: watcher %d: the last fragment announces another", sideNames[side], id)
		}
		got[side] = events
	}
	var request proto.Message
	if of != nil {
		request = of.request
	}
	length := max(len(got[etcd]), len(got[orlop]))
	if of != nil {
		length = max(length, len(of.expected))
	}
	at := func(events []*mvccpb.Event, i int) (proto.Message, string) {
		if i < len(events) {
			return events[i], fmt.Sprintf("event %d of %d: %s", i, len(events), show(events[i]))
		}
		return (*mvccpb.Event)(nil), fmt.Sprintf("event %d of %d: none", i, len(events))
	}
	for i := range length {
		one, text := at(got[etcd], i)
		other, otherText := at(got[orlop], i)
		if !proto.Equal(one, other) {
			return nil, &difference{
				method: watchMethod, request: request, reason: fmt.Sprintf("events of watcher %d differ", id),
				sides: [2]string{text, otherText},
			}
		}
		if of == nil {
			continue
		}
		isExpected := i < len(of.expected) &&
			got[etcd][i].Type == of.expected[i].Type &&
			proto.Equal(got[etcd][i].Kv, of.expected[i].Kv)
		if !isExpected {
			_, wanted := at(of.expected, i)
			return nil, fmt.Errorf("watcher %d, %v: both servers send\n%s\nbut what all changes call for is\n%s",
				id, request, text, wanted)
		}
	}
	w.delivered += length
	return got[etcd], nil
}

// drain waits until every watcher has got all there is, and compares.
func (w *watchSet) drain(revision int64) error {
	if err := w.advance(revision); err != nil {
		return err
	}
	for _, stream := range w.streams {
		if err := w.drainStream(stream); err != nil {
			return err
		}
	}
	if pause := syncPause - time.Since(w.unsyncedAt); pause > 0 {
		time.Sleep(pause)
	}
	return nil
}

func (w *watchSet) drainStream(stream *watchStream) error {
	for _, watcher := range stream.watchers {
		what := func() string {
			return fmt.Sprintf("%d events for watcher %d { %v }", len(watcher.expected), watcher.id, watcher.request)
		}
		err := await(what, func(side int) (bool, error) {
			count, _, err := stream.sides[side].state(watcher.id)
			return count >= len(watcher.expected), err
		})
		if err != nil {
			return err
		}
		if _, err := w.compareEvents(stream, watcher.id, watcher); err != nil {
			return err
		}
		watcher.expected = nil
	}
	for side := range stream.sides {
		progress := stream.sides[side].takeProgress()
		if len(progress) > stream.lateProgress {
			return fmt.Errorf("%s: unasked, or too early: %v", sideNames[side], progress)
		}
	}
	return nil
}

// wanted picks the events that the watcher must deliver.
func (w *watcher) wanted(events []*mvccpb.Event) (wanted []*mvccpb.Event) {
	if w.isCompacted {
		return nil
	}
	key, end := w.request.Key, w.request.RangeEnd
	if len(key) == 0 {
		key = []byte{0}
	}
	for _, event := range events {
		var isInside bool
		switch at := event.Kv.Key; {
		case len(end) == 0:
			isInside = bytes.Equal(at, key)
		case bytes.Equal(end, []byte{0}):
			isInside = bytes.Compare(at, key) >= 0
		default:
			isInside = bytes.Compare(at, key) >= 0 && bytes.Compare(at, end) < 0
		}
		filters := w.request.Filters
		isFiltered := event.Type == mvccpb.Event_PUT && slices.Contains(filters, pb.WatchCreateRequest_NOPUT) ||
			event.Type == mvccpb.Event_DELETE && slices.Contains(filters, pb.WatchCreateRequest_NODELETE)
		if isInside && !isFiltered && event.Kv.ModRevision >= w.start {
			wanted = append(wanted, event)
		}
	}
	return wanted
}
