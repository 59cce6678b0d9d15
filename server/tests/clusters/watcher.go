package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// watcher watches all keys through one member. Its sessions end now and then, by themselves or with the member, and the
// next goes on behind the last event, or well before it.
//
// A raw one sees each response as the server sends it; the other goes through etcd's client, which resumes by itself
// and drops what it knows.
type watcher struct {
	name     string
	member   *member
	traffic  *traffic
	recorder *recorder
	isRaw    bool
	random   *rand.Rand
	// The revision behind the last that it was told of; and that of the watch under way, which may tell of the past.
	next, at atomic.Int64
}

func newWatcher(m *member, t *traffic, isRaw bool, random *rand.Rand) *watcher {
	w := &watcher{
		name: m.name + "'s watcher", member: m, traffic: t, recorder: t.recorder, isRaw: isRaw, random: random,
	}
	if isRaw {
		w.name += ", raw"
	}
	w.next.Store(t.floor)
	w.at.Store(t.floor)
	return w
}

func (w *watcher) run(ctx context.Context) {
	for ctx.Err() == nil {
		from := w.traffic.begins(w)
		s := &session{watcher: w.name, from: from, hasPrevious: w.random.IntN(2) == 0}
		w.recorder.mutex.Lock()
		w.recorder.sessions = append(w.recorder.sessions, s)
		w.recorder.mutex.Unlock()
		ended, cancel := context.WithTimeout(ctx, time.Duration(1+w.random.IntN(6))*time.Second)
		var err error
		if w.isRaw {
			err = w.watchRaw(ended, s)
		} else {
			err = w.watch(ended, s)
		}
		if err != nil {
			pause(ended, 100*time.Millisecond)
		}
		cancel()
	}
}

// take records a response.
func (w *watcher) take(s *session, revision int64, isProgress bool, events []*mvccpb.Event) {
	answer := watchAnswer{w.recorder.now(), revision, isProgress, eventsOf(events)}
	w.recorder.mutex.Lock()
	s.answers = append(s.answers, answer)
	w.recorder.mutex.Unlock()
	if length := len(answer.events); length > 0 {
		w.at.Store(answer.events[length-1].modified + 1)
		w.next.Store(max(w.next.Load(), w.at.Load()))
	}
}

func (w *watcher) watch(ctx context.Context, s *session) error {
	options := []clientv3.OpOption{clientv3.WithFromKey(), clientv3.WithRev(s.from), clientv3.WithProgressNotify()}
	if s.hasPrevious {
		options = append(options, clientv3.WithPrevKV())
	}
	for answer := range w.member.client.Watch(ctx, "\x00", options...) {
		if err := answer.Err(); err != nil {
			return err
		}
		events := make([]*mvccpb.Event, len(answer.Events))
		for i, each := range answer.Events {
			events[i] = (*mvccpb.Event)(each)
		}
		w.take(s, answer.Header.Revision, answer.IsProgressNotify(), events)
	}
	return nil
}

func (w *watcher) watchRaw(ctx context.Context, s *session) error {
	client := pb.NewWatchClient(w.member.client.ActiveConnection())
	stream, err := client.Watch(ctx, grpc.MaxCallRecvMsgSize(math.MaxInt32))
	if err != nil {
		return err
	}
	request := &pb.WatchCreateRequest{
		Key: []byte{0}, RangeEnd: []byte{0}, StartRevision: s.from, PrevKv: s.hasPrevious, ProgressNotify: true,
	}
	err = stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: request}})
	if err != nil {
		return err
	}
	for {
		answer, err := stream.Recv()
		if err != nil {
			return err
		}
		if answer.Canceled {
			return fmt.Errorf("the watch from %d was cancelled: %s", s.from, answer.CancelReason)
		}
		if answer.Created {
			continue
		}
		w.take(s, answer.Header.Revision, len(answer.Events) == 0, answer.Events)
		if w.random.IntN(20) == 0 {
			ask := &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}
			if err := stream.Send(&pb.WatchRequest{RequestUnion: ask}); err != nil {
				return err
			}
		}
	}
}

// catchesUp returns when the watcher was told of all up to the revision.
func (w *watcher) catchesUp(ctx context.Context, revision int64) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return poll(ctx, func(context.Context) error {
		if next := w.next.Load(); next <= revision {
			return fmt.Errorf("%s was told of revisions up to %d, and there are %d", w.name, next-1, revision)
		}
		return nil
	})
}

// readHistory watches one member from one revision to another, both included.
func readHistory(ctx context.Context, m *member, first, last int64) ([]event, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	go func() {
		select {
		case <-m.gone:
			cancel()
		case <-ctx.Done():
		}
	}()
	var all []event
	if last < first {
		return nil, nil
	}
	for answer := range m.client.Watch(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithRev(first)) {
		if err := answer.Err(); err != nil {
			return nil, err
		}
		for _, each := range answer.Events {
			all = append(all, eventsOf([]*mvccpb.Event{(*mvccpb.Event)(each)})...)
		}
		if len(all) > 0 && all[len(all)-1].modified >= last {
			// Where more is written meanwhile, it is told of more.
			for all[len(all)-1].modified > last {
				all = all[:len(all)-1]
			}
			return all, nil
		}
	}
	err := fmt.Errorf("%s tells of %d events, not of all up to revision %d", m.name, len(all), last)
	return nil, errors.Join(err, ctx.Err())
}
