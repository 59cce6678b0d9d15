// Clients uses a server through etcd's own Go client, as programs do: by its packages clientv3, concurrency and
// namespace.
//
//	clients -endpoint http://127.0.0.1:2379[,..] [-gzip]
//
// It leaves other keys alone: all its own keys begin with a prefix of this run. It prints one line for each check, then
// `N passed, N failed`. The exit status is 1 if any check failed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding/gzip"
)

const checkTimeout = 30 * time.Second

type checks struct {
	*clientv3.Client
	prefix string
}

type check struct {
	name string
	run  func(context.Context) error
}

func main() {
	endpoint := flag.String("endpoint", "http://127.0.0.1:2379", "one, or several of one cluster, separated by commas")
	gzipped := flag.Bool("gzip", false, "compress all calls, and be answered in kind")
	flag.Parse()
	var dial []grpc.DialOption
	if *gzipped {
		dial = append(dial, grpc.WithDefaultCallOptions(grpc.UseCompressor(gzip.Name)))
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints:   strings.Split(*endpoint, ","),
		DialTimeout: 5 * time.Second,
		Logger:      zap.NewNop(),
		DialOptions: dial,
	})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	defer client.Close()
	c := &checks{Client: client, prefix: fmt.Sprintf("clients/%x/", time.Now().UnixNano())}
	all := []check{
		{"put and get", c.putGet},
		{"prefix, order, limit and pages", c.pages},
		{"get at a revision", c.getAtRevision},
		{"get as a stream", c.getStream},
		{"answers of many MiB", c.largeAnswers},
		{"delete and previous values", c.deletePrevious},
		{"txn", c.txn},
		{"txn as a counter of eight clients", c.counter},
		{"software transactional memory", c.stm},
		{"watch from now", c.watchNow},
		{"watch from the past", c.watchPast},
		{"watch of a prefix by fifty", c.watchMany},
		{"watch progress", c.watchProgress},
		{"watch of a compacted revision", c.watchCompacted},
		{"namespaces", c.namespaces},
		{"lease: grant, attach, revoke", c.leaseRevoke},
		{"lease: keep alive", c.leaseKeepAlive},
		{"lease: expiry deletes keys", c.leaseExpiry},
		{"session and mutex", c.mutex},
		{"election", c.election},
		{"compaction", c.compaction},
		{"errors", c.errors},
		{"status, members, hash", c.maintenance},
	}
	failed := 0
	for _, check := range all {
		ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
		if err := check.run(ctx); err != nil {
			failed++
			fmt.Printf("FAIL %s: %v\n", check.name, err)
		} else {
			fmt.Printf("ok %s\n", check.name)
		}
		cancel()
	}
	ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
	defer cancel()
	if _, err := client.Delete(ctx, c.prefix, clientv3.WithPrefix()); err != nil {
		fmt.Println("keys are left behind:", err)
	}
	fmt.Printf("%d passed, %d failed\n", len(all)-failed, failed)
	if failed > 0 {
		os.Exit(1)
	}
}

func expect[T comparable](what string, got, want T) error {
	if got != want {
		return fmt.Errorf("%s is %v, not %v", what, got, want)
	}
	return nil
}

// fill puts prefix + 000, 001, ... with the number as value, and returns the first and last revision.
func (c *checks) fill(ctx context.Context, prefix string, count int) (first, last int64, err error) {
	for i := range count {
		put, err := c.Put(ctx, fmt.Sprintf("%s%s%03d", c.prefix, prefix, i), strconv.Itoa(i))
		if err != nil {
			return 0, 0, err
		}
		if i == 0 {
			first = put.Header.Revision
		}
		last = put.Header.Revision
	}
	return first, last, nil
}

func (c *checks) putGet(ctx context.Context) error {
	key := c.prefix + "k"
	first, err := c.Put(ctx, key, "one")
	if err != nil {
		return err
	}
	second, err := c.Put(ctx, key, "two", clientv3.WithPrevKV())
	if err != nil {
		return err
	}
	got, err := c.Get(ctx, key)
	if err != nil {
		return err
	}
	if len(got.Kvs) != 1 {
		return fmt.Errorf("got %v", got)
	}
	kv := got.Kvs[0]
	return errors.Join(
		expect("previous value", string(second.PrevKv.Value), "one"),
		expect("value", string(kv.Value), "two"),
		expect("version", kv.Version, 2),
		expect("create revision", kv.CreateRevision, first.Header.Revision),
		expect("mod revision", kv.ModRevision, second.Header.Revision),
		expect("count", got.Count, 1),
	)
}

func (c *checks) pages(ctx context.Context) error {
	if _, _, err := c.fill(ctx, "pages/", 100); err != nil {
		return err
	}
	prefix := c.prefix + "pages/"
	descending := clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend)
	down, err := c.Get(ctx, prefix, clientv3.WithPrefix(), descending, clientv3.WithLimit(3))
	if err != nil {
		return err
	}
	if len(down.Kvs) != 3 || string(down.Kvs[0].Key) != prefix+"099" || !down.More || down.Count != 100 {
		return fmt.Errorf("descending with limit: %v", down)
	}
	var seen []string
	next, end := prefix, clientv3.GetPrefixRangeEnd(prefix)
	for page := 0; ; page++ {
		got, err := c.Get(ctx, next, clientv3.WithRange(end), clientv3.WithLimit(7))
		if err != nil {
			return err
		}
		for _, kv := range got.Kvs {
			seen = append(seen, string(kv.Key))
		}
		if err := expect("count behind page", got.Count, int64(100-7*page)); err != nil {
			return err
		}
		if !got.More {
			break
		}
		next = seen[len(seen)-1] + "\x00"
	}
	if len(seen) != 100 || !slices.IsSorted(seen) {
		return fmt.Errorf("pages hold %v", seen)
	}
	count, err := c.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return err
	}
	keys, err := c.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return err
	}
	return errors.Join(
		expect("count", count.Count, 100),
		expect("keys of count only", len(count.Kvs), 0),
		expect("keys only", len(keys.Kvs), 100),
		expect("bytes of a value with keys only", len(keys.Kvs[5].Value), 0),
	)
}

func (c *checks) getAtRevision(ctx context.Context) error {
	key := c.prefix + "past"
	put, err := c.Put(ctx, key, "old")
	if err != nil {
		return err
	}
	if _, err := c.Put(ctx, key, "new"); err != nil {
		return err
	}
	if _, err := c.Delete(ctx, key); err != nil {
		return err
	}
	now, err := c.Get(ctx, key)
	if err != nil {
		return err
	}
	old, err := c.Get(ctx, key, clientv3.WithRev(put.Header.Revision), clientv3.WithSerializable())
	if err != nil {
		return err
	}
	if len(old.Kvs) != 1 || string(old.Kvs[0].Value) != "old" {
		return fmt.Errorf("at revision %d: %v", put.Header.Revision, old)
	}
	return expect("keys now", len(now.Kvs), 0)
}

func (c *checks) getStream(ctx context.Context) error {
	if _, _, err := c.fill(ctx, "stream/", 100); err != nil {
		return err
	}
	stream, err := c.GetStream(ctx, c.prefix+"stream/", clientv3.WithPrefix())
	if err != nil {
		return err
	}
	whole, err := clientv3.GetStreamToGetResponse(stream)
	if err != nil {
		return err
	}
	return errors.Join(expect("keys", len(whole.Kvs), 100), expect("count", whole.Count, 100))
}

func (c *checks) deletePrevious(ctx context.Context) error {
	if _, _, err := c.fill(ctx, "del/", 10); err != nil {
		return err
	}
	from := c.prefix + "del/003"
	some, err := c.Delete(ctx, from, clientv3.WithRange(c.prefix+"del/007"), clientv3.WithPrevKV())
	if err != nil {
		return err
	}
	rest, err := c.Delete(ctx, c.prefix+"del/", clientv3.WithPrefix())
	if err != nil {
		return err
	}
	if len(some.PrevKvs) != 4 || string(some.PrevKvs[0].Key) != from {
		return fmt.Errorf("previous values: %v", some.PrevKvs)
	}
	return errors.Join(expect("deleted", some.Deleted, 4), expect("then deleted", rest.Deleted, 6))
}

func (c *checks) txn(ctx context.Context) error {
	key := c.prefix + "txn"
	create := func() (*clientv3.TxnResponse, error) {
		return c.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).
			Then(clientv3.OpPut(key, "mine")).Else(clientv3.OpGet(key)).Commit()
	}
	first, err := create()
	if err != nil {
		return err
	}
	second, err := create()
	if err != nil {
		return err
	}
	putAndDelete := []clientv3.Op{clientv3.OpPut(key+"/a", "1"), clientv3.OpDelete(key)}
	nested, err := c.Txn(ctx).
		If(clientv3.Compare(clientv3.Value(key), "=", "mine"), clientv3.Compare(clientv3.Version(key), ">", 0)).
		Then(clientv3.OpTxn(nil, putAndDelete, nil), clientv3.OpGet(key)).
		Commit()
	if err != nil {
		return err
	}
	if !first.Succeeded || second.Succeeded || !nested.Succeeded {
		return fmt.Errorf("succeeded: %v %v %v", first.Succeeded, second.Succeeded, nested.Succeeded)
	}
	inner := nested.Responses[0].GetResponseTxn()
	return errors.Join(
		expect("value found", string(second.Responses[0].GetResponseRange().Kvs[0].Value), "mine"),
		expect("deleted by the inner one", inner.Responses[1].GetResponseDeleteRange().Deleted, 1),
		expect("found after it", len(nested.Responses[1].GetResponseRange().Kvs), 0),
	)
}

func (c *checks) counter(ctx context.Context) error {
	const clients, each = 8, 25
	key := c.prefix + "counter"
	if _, err := c.Put(ctx, key, "0"); err != nil {
		return err
	}
	var all sync.WaitGroup
	errs := make([]error, clients)
	for client := range clients {
		all.Go(func() {
			for done := 0; done < each && errs[client] == nil; {
				got, err := c.Get(ctx, key)
				if err != nil {
					errs[client] = err
					return
				}
				value, _ := strconv.Atoi(string(got.Kvs[0].Value))
				answer, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", got.Kvs[0].ModRevision)).
					Then(clientv3.OpPut(key, strconv.Itoa(value+1))).Commit()
				if errs[client] = err; err == nil && answer.Succeeded {
					done++
				}
			}
		})
	}
	all.Wait()
	got, err := c.Get(ctx, key)
	if err := errors.Join(append(errs, err)...); err != nil {
		return err
	}
	return errors.Join(
		expect("counter", string(got.Kvs[0].Value), strconv.Itoa(clients*each)),
		expect("version", got.Kvs[0].Version, clients*each+1),
	)
}

func (c *checks) stm(ctx context.Context) error {
	from, to := c.prefix+"stm/from", c.prefix+"stm/to"
	if _, err := c.Put(ctx, from, "100"); err != nil {
		return err
	}
	var all sync.WaitGroup
	errs := make([]error, 4)
	for i := range errs {
		all.Go(func() {
			_, errs[i] = concurrency.NewSTM(c.Client, func(s concurrency.STM) error {
				left, _ := strconv.Atoi(s.Get(from))
				right, _ := strconv.Atoi(s.Get(to))
				s.Put(from, strconv.Itoa(left-10))
				s.Put(to, strconv.Itoa(right+10))
				return nil
			}, concurrency.WithAbortContext(ctx))
		})
	}
	all.Wait()
	got, err := c.Get(ctx, c.prefix+"stm/", clientv3.WithPrefix())
	if err := errors.Join(append(errs, err)...); err != nil {
		return err
	}
	return expect("balances", string(got.Kvs[0].Value)+" "+string(got.Kvs[1].Value), "60 40")
}

// collect takes events until there are as many as wanted.
func collect(ctx context.Context, watch clientv3.WatchChan, wanted int) ([]*clientv3.Event, error) {
	var events []*clientv3.Event
	for len(events) < wanted {
		select {
		case answer, isOpen := <-watch:
			if err := answer.Err(); err != nil || !isOpen {
				return events, fmt.Errorf("watch ended after %d events: %w", len(events), err)
			}
			events = append(events, answer.Events...)
		case <-ctx.Done():
			return events, fmt.Errorf("%d of %d events: %w", len(events), wanted, ctx.Err())
		}
	}
	return events, nil
}

// created waits for the server's word that the watch is there.
func created(ctx context.Context, watch clientv3.WatchChan) error {
	select {
	case answer := <-watch:
		if !answer.Created {
			return fmt.Errorf("first answer of a watch: %v", answer)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("watch is not created: %w", ctx.Err())
	}
}

func (c *checks) watchNow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	key := c.prefix + "watch"
	watch := c.Watch(ctx, key, clientv3.WithPrevKV(), clientv3.WithCreatedNotify())
	if err := created(ctx, watch); err != nil {
		return err
	}
	for _, value := range []string{"1", "2"} {
		if _, err := c.Put(ctx, key, value); err != nil {
			return err
		}
	}
	deleted, err := c.Delete(ctx, key)
	if err != nil {
		return err
	}
	events, err := collect(ctx, watch, 3)
	if err != nil {
		return err
	}
	return errors.Join(
		expect("create", events[0].IsCreate(), true),
		expect("modify", events[1].IsModify(), true),
		expect("previous value", string(events[1].PrevKv.Value), "1"),
		expect("type", events[2].Type, mvccpb.Event_DELETE),
		expect("revision of the deletion", events[2].Kv.ModRevision, deleted.Header.Revision),
		expect("value deleted", string(events[2].PrevKv.Value), "2"),
	)
}

func (c *checks) watchPast(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	first, _, err := c.fill(ctx, "past/", 200)
	if err != nil {
		return err
	}
	watch := c.Watch(ctx, c.prefix+"past/", clientv3.WithPrefix(), clientv3.WithRev(first))
	if _, _, err := c.fill(ctx, "past/", 50); err != nil {
		return err
	}
	events, err := collect(ctx, watch, 250)
	if err != nil {
		return err
	}
	byRevision := func(a, b *clientv3.Event) int { return int(a.Kv.ModRevision - b.Kv.ModRevision) }
	if !slices.IsSortedFunc(events, byRevision) {
		return errors.New("events are out of order")
	}
	return errors.Join(expect("events", len(events), 250), expect("first revision", events[0].Kv.ModRevision, first))
}

func (c *checks) watchMany(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var watches []clientv3.WatchChan
	for range 50 {
		watch := c.Watch(ctx, c.prefix+"many/",
			clientv3.WithPrefix(), clientv3.WithFilterDelete(), clientv3.WithCreatedNotify())
		if err := created(ctx, watch); err != nil {
			return err
		}
		watches = append(watches, watch)
	}
	if _, _, err := c.fill(ctx, "many/", 20); err != nil {
		return err
	}
	if _, err := c.Delete(ctx, c.prefix+"many/", clientv3.WithPrefix()); err != nil {
		return err
	}
	if _, _, err := c.fill(ctx, "many/", 1); err != nil {
		return err
	}
	for i, watch := range watches {
		events, err := collect(ctx, watch, 21)
		if err != nil {
			return fmt.Errorf("watch %d: %w", i, err)
		}
		if err := expect("type of the last event", events[20].Type, mvccpb.Event_PUT); err != nil {
			return err
		}
	}
	return nil
}

func (c *checks) watchProgress(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watch := c.Watch(ctx, c.prefix+"quiet", clientv3.WithCreatedNotify())
	if err := created(ctx, watch); err != nil {
		return err
	}
	_, last, err := c.fill(ctx, "noise/", 3)
	if err != nil {
		return err
	}
	if err := c.RequestProgress(ctx); err != nil {
		return err
	}
	select {
	case answer := <-watch:
		if !answer.IsProgressNotify() {
			return fmt.Errorf("progress is %v", answer)
		}
		return expect("progress", answer.Header.Revision >= last, true)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *checks) watchCompacted(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	first, last, err := c.fill(ctx, "compacted/", 5)
	if err != nil {
		return err
	}
	if _, err := c.Compact(ctx, last); err != nil {
		return err
	}
	if err := c.isCompactedAt(ctx, last); err != nil {
		return err
	}
	answer, isOpen := <-c.Watch(ctx, c.prefix+"compacted/", clientv3.WithPrefix(), clientv3.WithRev(first))
	if !isOpen {
		return errors.New("the watch ended without an answer")
	}
	return errors.Join(
		expect("error", errors.Is(answer.Err(), rpctypes.ErrCompacted), true),
		expect("compact revision", answer.CompactRevision, last),
	)
}

// isCompactedAt waits until every member knows of the compaction: a watch goes to any of them.
func (c *checks) isCompactedAt(ctx context.Context, revision int64) error {
	for _, endpoint := range c.Endpoints() {
		for {
			hash, err := c.HashKV(ctx, endpoint, 0)
			if err != nil {
				return err
			}
			if hash.CompactRevision >= revision {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	return nil
}

func (c *checks) namespaces(ctx context.Context) error {
	inside := namespace.NewKV(c.KV, c.prefix+"space/")
	if _, err := inside.Put(ctx, "x", "y"); err != nil {
		return err
	}
	everything, err := inside.Get(ctx, "", clientv3.WithPrefix())
	if err != nil {
		return err
	}
	if len(everything.Kvs) != 1 || string(everything.Kvs[0].Key) != "x" {
		return fmt.Errorf("inside: %v", everything)
	}
	return nil
}

func (c *checks) leaseRevoke(ctx context.Context) error {
	key := c.prefix + "leased/"
	lease, err := c.Grant(ctx, 100)
	if err != nil {
		return err
	}
	for _, name := range []string{"a", "b"} {
		if _, err := c.Put(ctx, key+name, "v", clientv3.WithLease(lease.ID)); err != nil {
			return err
		}
	}
	left, err := c.TimeToLive(ctx, lease.ID, clientv3.WithAttachedKeys())
	if err != nil {
		return err
	}
	leases, err := c.Leases(ctx)
	if err != nil {
		return err
	}
	isListed := slices.ContainsFunc(leases.Leases, func(status clientv3.LeaseStatus) bool {
		return status.ID == lease.ID
	})
	if _, err := c.Revoke(ctx, lease.ID); err != nil {
		return err
	}
	gone, err := c.Get(ctx, key, clientv3.WithPrefix())
	if err != nil {
		return err
	}
	after, err := c.TimeToLive(ctx, lease.ID)
	if err != nil {
		return err
	}
	return errors.Join(
		expect("attached keys", len(left.Keys), 2),
		expect("granted", left.GrantedTTL, 100),
		expect("time left", left.TTL > 90 && left.TTL <= 100, true),
		expect("listed", isListed, true),
		expect("keys after the revocation", len(gone.Kvs), 0),
		expect("time left after the revocation", after.TTL, -1),
	)
}

func (c *checks) leaseKeepAlive(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	key := c.prefix + "alive"
	lease, err := c.Grant(ctx, 2)
	if err != nil {
		return err
	}
	if _, err := c.Put(ctx, key, "v", clientv3.WithLease(lease.ID)); err != nil {
		return err
	}
	alive, err := c.KeepAlive(ctx, lease.ID)
	if err != nil {
		return err
	}
	// The client renews the lease after each third of its time. So six answers take twice the lease's time.
	for range 6 {
		if answer := <-alive; answer == nil || answer.TTL != 2 {
			return fmt.Errorf("keep-alive: %v", answer)
		}
	}
	got, err := c.Get(ctx, key)
	if err != nil {
		return err
	}
	if _, err := c.Revoke(ctx, lease.ID); err != nil {
		return err
	}
	_, err = c.KeepAliveOnce(ctx, lease.ID)
	return errors.Join(
		expect("keys", len(got.Kvs), 1),
		expect("keep-alive of nothing is refused", errors.Is(err, rpctypes.ErrLeaseNotFound), true),
	)
}

func (c *checks) leaseExpiry(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	prefix := c.prefix + "expiry/"
	lease, err := c.Grant(ctx, 2)
	if err != nil {
		return err
	}
	watch := c.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithFilterPut())
	for _, name := range []string{"a", "b", "c"} {
		if _, err := c.Put(ctx, prefix+name, "v", clientv3.WithLease(lease.ID)); err != nil {
			return err
		}
	}
	events, err := collect(ctx, watch, 3)
	if err != nil {
		return err
	}
	return expect("one revision for all", events[0].Kv.ModRevision, events[2].Kv.ModRevision)
}

func (c *checks) mutex(ctx context.Context) error {
	const holders = 4
	inside, order := 0, 0
	var all sync.WaitGroup
	errs := make([]error, holders)
	for holder := range holders {
		all.Go(func() {
			errs[holder] = func() error {
				session, err := concurrency.NewSession(c.Client, concurrency.WithTTL(10), concurrency.WithContext(ctx))
				if err != nil {
					return err
				}
				defer session.Close()
				mutex := concurrency.NewMutex(session, c.prefix+"mutex")
				for range 5 {
					if err := mutex.Lock(ctx); err != nil {
						return err
					}
					inside++
					order++
					err := expect("holders", inside, 1)
					inside--
					if err := errors.Join(err, mutex.Unlock(ctx)); err != nil {
						return err
					}
				}
				return nil
			}()
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return expect("times locked", order, 5*holders)
}

func (c *checks) election(ctx context.Context) error {
	sessions := make([]*concurrency.Session, 2)
	elections := make([]*concurrency.Election, 2)
	for i := range sessions {
		session, err := concurrency.NewSession(c.Client, concurrency.WithTTL(10), concurrency.WithContext(ctx))
		if err != nil {
			return err
		}
		defer session.Close()
		sessions[i], elections[i] = session, concurrency.NewElection(session, c.prefix+"election")
	}
	if err := elections[0].Campaign(ctx, "first"); err != nil {
		return err
	}
	won := make(chan error, 1)
	go func() { won <- elections[1].Campaign(ctx, "second") }()
	leader, err := elections[1].Leader(ctx)
	if err != nil {
		return err
	}
	if err := expect("leader", string(leader.Kvs[0].Value), "first"); err != nil {
		return err
	}
	if err := errors.Join(sessions[0].Close(), <-won); err != nil {
		return err
	}
	leader, err = elections[1].Leader(ctx)
	if err != nil {
		return err
	}
	return expect("leader then", string(leader.Kvs[0].Value), "second")
}

func (c *checks) compaction(ctx context.Context) error {
	first, last, err := c.fill(ctx, "compact/", 5)
	if err != nil {
		return err
	}
	if _, err := c.Compact(ctx, last, clientv3.WithCompactPhysical()); err != nil {
		return err
	}
	_, again := c.Compact(ctx, last)
	_, past := c.Get(ctx, c.prefix, clientv3.WithPrefix(), clientv3.WithRev(first))
	_, future := c.Get(ctx, c.prefix, clientv3.WithRev(last+1_000_000))
	now, err := c.Get(ctx, c.prefix+"compact/", clientv3.WithPrefix(), clientv3.WithRev(last))
	return errors.Join(
		err,
		expect("second compaction", errors.Is(again, rpctypes.ErrCompacted), true),
		expect("read of the past", errors.Is(past, rpctypes.ErrCompacted), true),
		expect("read of the future", errors.Is(future, rpctypes.ErrFutureRev), true),
		expect("keys at the compacted revision", len(now.Kvs), 5),
	)
}

func (c *checks) errors(ctx context.Context) error {
	_, emptyKey := c.Put(ctx, "", "v")
	_, noLease := c.Put(ctx, c.prefix+"k", "v", clientv3.WithLease(0x7777))
	_, twice := c.Txn(ctx).Then(clientv3.OpPut(c.prefix+"k", "1"), clientv3.OpPut(c.prefix+"k", "2")).Commit()
	_, noKey := c.Put(ctx, c.prefix+"absent", "", clientv3.WithIgnoreValue())
	_, revoked := c.Revoke(ctx, 0x7777)
	_, tooLarge := c.Put(ctx, c.prefix+"k", string(make([]byte, 1_600_000)))
	return errors.Join(
		expect("empty key", errors.Is(emptyKey, rpctypes.ErrEmptyKey), true),
		expect("unknown lease", errors.Is(noLease, rpctypes.ErrLeaseNotFound), true),
		expect("key put twice", errors.Is(twice, rpctypes.ErrDuplicateKey), true),
		expect("value kept of no key", errors.Is(noKey, rpctypes.ErrKeyNotFound), true),
		expect("revocation of nothing", errors.Is(revoked, rpctypes.ErrLeaseNotFound), true),
		expect("too large", errors.Is(tooLarge, rpctypes.ErrRequestTooLarge), true),
	)
}

func (c *checks) maintenance(ctx context.Context) error {
	endpoint := c.Endpoints()[0]
	status, err := c.Status(ctx, endpoint)
	if err != nil {
		return err
	}
	members, err := c.MemberList(ctx)
	if err != nil {
		return err
	}
	hash, err := c.HashKV(ctx, endpoint, 0)
	if err != nil {
		return err
	}
	alarms, err := c.AlarmList(ctx)
	if err != nil {
		return err
	}
	if len(members.Members) == 0 {
		return errors.New("no members")
	}
	isMember := slices.ContainsFunc(members.Members, func(member *etcdserverpb.Member) bool {
		return member.ID == status.Header.MemberId
	})
	return errors.Join(
		expect("the member is listed", isMember, true),
		expect("there is a leader", status.Leader != 0, true),
		expect("size is known", status.DbSize > 0, true),
		expect("there is a hash", hash.Hash != 0, true),
		expect("alarms", len(alarms.Alarms), 0),
	)
}
