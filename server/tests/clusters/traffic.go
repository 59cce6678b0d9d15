package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// Keys of the model, few enough for clients to meet at them.
	modelKeys   = 8
	modelPrefix = "k/"
	// Two clients for each member make about 150 requests a second together.
	clientsPerMember = 2
	pauseMost        = 60 * time.Millisecond
)

func modelKey(i int) string { return fmt.Sprint(modelPrefix, i) }

// traffic is all that clients do meanwhile: each speaks to one member alone.
type traffic struct {
	context  context.Context
	cluster  *cluster
	recorder *recorder
	seed     uint64
	// Of the next client: no two of a run have the same.
	number int
	// Without one, nothing is compacted.
	journal *journal

	mutex sync.Mutex
	posts []*post
	// No watch asks for an earlier revision: it may be compacted.
	floor int64
}

// post is the clients of one member.
type post struct {
	member *member
	// A client that writes, by its number.
	writer   int
	watchers []*watcher

	stopClients, stopWatchers context.CancelFunc
	clients, watching         sync.WaitGroup
}

func startTraffic(ctx context.Context, c *cluster, r *recorder, seed uint64) *traffic {
	t := newTraffic(ctx, c, r, seed)
	for _, m := range c.members {
		t.join(m)
	}
	return t
}

func newTraffic(ctx context.Context, c *cluster, r *recorder, seed uint64) *traffic {
	return &traffic{context: ctx, cluster: c, recorder: r, seed: seed, floor: 1}
}

// continues has clients go on behind a history: they ask for nothing earlier.
func (t *traffic) continues(earlier *history) {
	t.floor = earlier.last + 1
	// Values and leases have the names of clients.
	t.number = earlier.clients
}

// join starts the clients of a member.
func (t *traffic) join(m *member) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	p := &post{member: m, writer: t.number}
	clients, stopClients := context.WithCancel(t.context)
	watching, stopWatchers := context.WithCancel(t.context)
	p.stopClients, p.stopWatchers = stopClients, stopWatchers
	for range clientsPerMember {
		client := t.newCaller(m.client)
		p.clients.Go(func() { client.run(clients) })
	}
	holder := &holder{t.newCaller(m.client)}
	p.clients.Go(func() { holder.run(clients) })
	for _, isRaw := range []bool{true, false} {
		w := newWatcher(m, t, isRaw, rand.New(rand.NewPCG(t.seed, uint64(1000+2*t.number+len(p.watchers)))))
		p.watchers = append(p.watchers, w)
		p.watching.Go(func() { w.run(watching) })
	}
	t.posts = append(t.posts, p)
}

func (t *traffic) newCaller(client *clientv3.Client) *caller {
	t.number++
	return newCaller(t.number-1, client, t.recorder, t.seed)
}

// leave ends the clients of a member that is still there, once its watchers know all that it knew.
func (t *traffic) leave(ctx context.Context, m *member) error {
	at := slices.IndexFunc(t.posts, func(p *post) bool { return p.member == m })
	p := t.posts[at]
	p.stopClients()
	p.clients.Wait()
	var last int64
	err := poll(ctx, func(ctx context.Context) error {
		answer, err := m.client.Get(ctx, "any", clientv3.WithSerializable())
		if err == nil {
			last = answer.Header.Revision
		}
		return err
	})
	for _, w := range p.watchers {
		err = errors.Join(err, w.catchesUp(ctx, last))
	}
	p.stopWatchers()
	p.watching.Wait()
	t.mutex.Lock()
	t.posts = slices.Delete(t.posts, at, at+1)
	t.mutex.Unlock()
	return err
}

func (t *traffic) stopClients() {
	for _, p := range t.posts {
		p.stopClients()
	}
	for _, p := range t.posts {
		p.clients.Wait()
	}
}

func (t *traffic) stopWatchers() {
	for _, p := range t.posts {
		p.stopWatchers()
	}
	for _, p := range t.posts {
		p.watching.Wait()
	}
}

func (t *traffic) stop() {
	t.stopClients()
	t.stopWatchers()
}

// compactable is the last revision that no watcher will ask for or is to be told of, of those before the first that is
// kept; none will ask for it from here on. An event of which one is told later would come without what was before.
func (t *traffic) compactable(kept int64) int64 {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	for _, p := range t.posts {
		for _, w := range p.watchers {
			kept = min(kept, w.at.Load())
		}
	}
	t.floor = max(t.floor, kept)
	return t.floor - 1
}

// begins says from which revision a watcher watches now: where it is, or from a point in the past that is still there.
func (t *traffic) begins(w *watcher) int64 {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	from := w.next.Load()
	if w.random.IntN(4) == 0 {
		from = t.floor + w.random.Int64N(from-t.floor+1)
	}
	w.at.Store(from)
	return from
}

// goesOn returns when a client of every member that counts had a write acknowledged that began after this call.
func (t *traffic) goesOn(ctx context.Context, counts func(i int) bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	now := t.recorder.now()
	return poll(ctx, func(context.Context) error {
		for _, p := range t.posts {
			if !counts(slices.Index(t.cluster.members, p.member)) {
				continue
			}
			if err := p.member.diedUnasked(); err != nil {
				return final{err}
			}
			if t.recorder.acknowledged(p.writer, now) == 0 {
				return fmt.Errorf("no write is acknowledged by %s\n%s", p.member.name, p.member.logTail())
			}
		}
		return nil
	})
}

// caller makes one request at a time to one member, or to any of several, and records what it is told.
type caller struct {
	number   int
	client   *clientv3.Client
	recorder *recorder
	random   *rand.Rand
	written  int
	// The revision of each key when this client last heard of it.
	seen map[string]int64
}

func newCaller(number int, client *clientv3.Client, r *recorder, seed uint64) *caller {
	return &caller{
		number: number, client: client, recorder: r,
		random: rand.New(rand.NewPCG(seed, uint64(number))),
		seen:   map[string]int64{},
	}
}

func (c *caller) run(ctx context.Context) {
	for ctx.Err() == nil {
		if c.do(ctx, c.next()) != nil {
			pause(ctx, 100*time.Millisecond)
		}
		pause(ctx, time.Duration(c.random.Int64N(int64(pauseMost))))
	}
}

func pause(ctx context.Context, length time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(length):
	}
}

// next draws an operation.
func (c *caller) next() *operation {
	first := c.random.IntN(modelKeys)
	key := modelKey(first)
	o := &operation{keys: []string{key}}
	switch draw := c.random.IntN(100); {
	case draw < 20:
		o.kind = get
	case draw < 30:
		o.kind, o.isSerializable = get, true
	case draw < 40:
		o.kind, o.keys = list, nil
		o.isSerializable = draw < 33
	case draw < 60:
		o.kind = put
	case draw < 70:
		o.kind = remove
	case draw < 90:
		o.kind, o.demanded = swap, c.seen[key]
	default:
		o.kind = pair
		o.keys = append(o.keys, modelKey((first+1+c.random.IntN(modelKeys-1))%modelKeys))
	}
	return o
}

func (c *caller) nextValue() string {
	c.written++
	return fmt.Sprintf("%d.%d", c.number, c.written)
}

// do carries an operation out and records it. Whatever error comes back, the operation may have happened.
func (c *caller) do(ctx context.Context, o *operation) error {
	// A client that is stopped still waits for its answer: nothing is left open without need.
	call, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	o.client = c.number
	var value string
	if o.isWrite() && o.kind != remove {
		value = c.nextValue()
		value += strings.Repeat("f", o.padding)
		o.value = shortened([]byte(value))
	}
	client := c.client
	o.called = c.recorder.now()
	switch o.kind {
	case get, list:
		key, options := modelPrefix, []clientv3.OpOption{}
		if o.kind == get {
			key = o.keys[0]
		} else {
			options = append(options, clientv3.WithPrefix())
		}
		if o.isSerializable {
			options = append(options, clientv3.WithSerializable())
		}
		var answer *clientv3.GetResponse
		if answer, o.err = client.Get(call, key, options...); o.err == nil {
			o.revision, o.found = answer.Header.Revision, versionsOf(answer.Kvs)
		}
	case put:
		var answer *clientv3.PutResponse
		lease := clientv3.WithLease(clientv3.LeaseID(o.lease))
		if answer, o.err = client.Put(call, o.keys[0], value, lease); o.err == nil {
			o.revision = answer.Header.Revision
		}
	case remove:
		var answer *clientv3.DeleteResponse
		if answer, o.err = client.Delete(call, o.keys[0]); o.err == nil {
			o.revision, o.removed = answer.Header.Revision, answer.Deleted
		}
	case swap:
		var answer *clientv3.TxnResponse
		answer, o.err = client.Txn(call).
			If(clientv3.Compare(clientv3.ModRevision(o.keys[0]), "=", o.demanded)).
			Then(clientv3.OpPut(o.keys[0], value)).
			Else(clientv3.OpGet(o.keys[0])).
			Commit()
		if o.err == nil {
			o.revision, o.succeeded = answer.Header.Revision, answer.Succeeded
			if !o.succeeded {
				o.found = versionsOf(answer.Responses[0].GetResponseRange().GetKvs())
			}
		}
	case pair:
		var answer *clientv3.TxnResponse
		answer, o.err = client.Txn(call).
			Then(clientv3.OpPut(o.keys[0], value), clientv3.OpPut(o.keys[1], value)).
			Commit()
		if o.err == nil {
			o.revision = answer.Header.Revision
		}
	}
	o.returned = c.recorder.now()
	c.learn(o)
	c.recorder.add(o)
	return o.err
}

func (c *caller) learn(o *operation) {
	if o.err != nil {
		return
	}
	if o.kind == get || o.kind == remove || (o.kind == swap && !o.succeeded) {
		c.seen[o.keys[0]] = 0
	}
	for _, found := range o.found {
		c.seen[found.key] = found.modified
	}
	if o.changed() && o.kind != remove {
		for _, key := range o.keys {
			c.seen[key] = o.revision
		}
	}
}

// holder has one lease at a time, with a key that goes with it.
type holder struct{ *caller }

const leaseSeconds = 4

func (h *holder) run(ctx context.Context) {
	for ctx.Err() == nil {
		if h.hold(ctx) != nil {
			pause(ctx, 200*time.Millisecond)
		}
	}
}

// hold makes a lease, renews it for a while, and lets it go: it is revoked, or it runs out.
func (h *holder) hold(ctx context.Context) error {
	call, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	sent := h.recorder.now()
	granted, err := h.client.Grant(call, leaseSeconds)
	if err != nil {
		return err
	}
	story := &leaseStory{id: int64(granted.ID), ttl: granted.TTL, renewed: sent}
	h.recorder.mutex.Lock()
	h.recorder.leases = append(h.recorder.leases, story)
	h.recorder.mutex.Unlock()
	key := fmt.Sprintf("lease/%d/%d", h.number, h.random.IntN(2))
	o := &operation{kind: put, keys: []string{key}, lease: story.id, isFiller: true, padding: fillerBytes}
	if err := h.do(ctx, o); err != nil {
		return err
	}
	for range 1 + h.random.IntN(8) {
		pause(ctx, time.Second)
		if ctx.Err() != nil {
			return nil
		}
		if err := h.renew(ctx, story); errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return nil
		}
	}
	if h.random.IntN(2) == 0 {
		return h.revoke(ctx, story)
	}
	pause(ctx, leaseSeconds*time.Second/2)
	return nil
}

func (h *holder) renew(ctx context.Context, story *leaseStory) error {
	call, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	sent := h.recorder.now()
	answer, err := h.client.KeepAliveOnce(call, clientv3.LeaseID(story.id))
	if err != nil {
		return err
	}
	h.recorder.mutex.Lock()
	story.renewed, story.ttl = sent, answer.TTL
	h.recorder.mutex.Unlock()
	return nil
}

func (h *holder) revoke(ctx context.Context, story *leaseStory) error {
	h.recorder.mutex.Lock()
	story.wasRevoked = true
	h.recorder.mutex.Unlock()
	call, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	_, err := h.client.Revoke(call, clientv3.LeaseID(story.id))
	return err
}
