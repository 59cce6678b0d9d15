package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	killWriters    = 64
	keysPerWriter  = 50
	killAfterLeast = 300 * time.Millisecond
	killAfterMost  = 2 * time.Second
)

// tally is what one writer knows of one of its keys. Each put writes the next number. So the store must hold a number
// that was tried, and none before the last acknowledged one.
type tally struct {
	tried, acknowledged int64
	// The revision that the acknowledgement named.
	revision int64
	lease    int64
}

// runKills kills the server under load, starts it again and looks for every acknowledged write.
func runKills(opt options, seed uint64, rounds int) error {
	random := rand.New(rand.NewPCG(seed, 0))
	server, err := newServer(sideNames[orlop], opt.orlop, opt.orlopFlags, opt.dataDir, opt.tls)
	if err != nil {
		return err
	}
	defer server.discard()
	if err := server.start(); err != nil {
		return err
	}
	tallies := make([][keysPerWriter]tally, killWriters)
	for round := 1; round <= rounds; round++ {
		loaded := killAfterLeast + time.Duration(random.Int64N(int64(killAfterMost-killAfterLeast)))
		acknowledged, err := loadUntilKilled(server, tallies, loaded, random.Uint64())
		if err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		if acknowledged == 0 {
			return fmt.Errorf("round %d: nothing was acknowledged in %v", round, loaded)
		}
		began := time.Now()
		if err := server.start(); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		started := time.Since(began)
		if err := checkTallies(server, tallies); err != nil {
			return fmt.Errorf("round %d, killed after %v: %w", round, loaded, err)
		}
		fmt.Printf("round %d: %d writes acknowledged in %v, answering again after %v, nothing lost\n",
			round, acknowledged, loaded.Round(time.Millisecond), started.Round(time.Millisecond))
	}
	return nil
}

func tallyKey(writer, key int) []byte { return fmt.Appendf(nil, "kill/%03d/%03d", writer, key) }

// loadUntilKilled runs all writers at once and kills the server under them. It returns how many writes were
// acknowledged.
func loadUntilKilled(server *server, tallies [][keysPerWriter]tally, loaded time.Duration, seed uint64) (int64, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var total atomic.Int64
	var writers sync.WaitGroup
	refusals := make([]error, len(tallies))
	for writer := range tallies {
		writers.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(writer)))
			for ctx.Err() == nil {
				key := random.IntN(keysPerWriter)
				err := writeNext(ctx, server, tallyKey(writer, key), &tallies[writer][key], random)
				switch status.Code(err) {
				case codes.OK:
					total.Add(1)
				case codes.Unavailable, codes.Canceled:
					// The server is gone. This write may be there or not.
					return
				default:
					refusals[writer] = err
					return
				}
			}
		})
	}
	time.Sleep(loaded)
	err := server.stop(syscall.SIGKILL)
	cancel()
	writers.Wait()
	return total.Load(), errors.Join(append(refusals, err)...)
}

// writeNext puts the key's next number. Some puts are part of a transaction, and some have a lease made for them.
func writeNext(ctx context.Context, server *server, key []byte, tally *tally, random *rand.Rand) error {
	kv := pb.NewKVClient(server.conn)
	next := tally.tried + 1
	put := &pb.PutRequest{Key: key, Value: strconv.AppendInt(nil, next, 10)}
	// Sometimes large, so that writes cross the borders of blocks and segments.
	if random.IntN(20) == 0 {
		put.Value = append(put.Value, make([]byte, 1+random.IntN(20<<10))...)
	}
	if random.IntN(50) == 0 {
		granted, err := pb.NewLeaseClient(server.conn).LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 3600})
		if err != nil {
			return err
		}
		put.Lease = granted.ID
	}
	tally.tried = next
	var revision int64
	if random.IntN(4) == 0 {
		deletion := &pb.DeleteRangeRequest{Key: append(key, "/old"...)}
		answer, err := kv.Txn(ctx, &pb.TxnRequest{
			Success: []*pb.RequestOp{
				{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: deletion}},
				{Request: &pb.RequestOp_RequestPut{RequestPut: put}},
			},
		})
		if err != nil {
			return err
		}
		revision = answer.Header.Revision
	} else {
		answer, err := kv.Put(ctx, put)
		if err != nil {
			return err
		}
		revision = answer.Header.Revision
	}
	if revision <= tally.revision {
		return fmt.Errorf("%s: acknowledged at revision %d after %d", key, revision, tally.revision)
	}
	tally.acknowledged, tally.revision, tally.lease = next, revision, put.Lease
	return nil
}

func checkTallies(server *server, tallies [][keysPerWriter]tally) error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	request := &pb.RangeRequest{Key: []byte("kill/"), RangeEnd: []byte("kill0")}
	everything, err := pb.NewKVClient(server.conn).Range(ctx, request)
	if err != nil {
		return err
	}
	found := map[string]int{}
	for i, kv := range everything.Kvs {
		found[string(kv.Key)] = i
	}
	leases, err := pb.NewLeaseClient(server.conn).LeaseLeases(ctx, &pb.LeaseLeasesRequest{})
	if err != nil {
		return err
	}
	granted := map[int64]bool{}
	for _, lease := range leases.Leases {
		granted[lease.ID] = true
	}
	for writer := range tallies {
		for key := range tallies[writer] {
			tally, name := &tallies[writer][key], string(tallyKey(writer, key))
			at, isFound := found[name]
			if !isFound {
				if tally.acknowledged > 0 {
					return fmt.Errorf("%s is missing; %d was acknowledged at revision %d",
						name, tally.acknowledged, tally.revision)
				}
				continue
			}
			kv := everything.Kvs[at]
			number, err := leadingNumber(kv.Value)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if number < tally.acknowledged || number > tally.tried || kv.ModRevision < tally.revision {
				return fmt.Errorf("%s is %d of revision %d; acknowledged was %d at revision %d, tried %d",
					name, number, kv.ModRevision, tally.acknowledged, tally.revision, tally.tried)
			}
			if number == tally.acknowledged && (kv.ModRevision != tally.revision || kv.Lease != tally.lease) {
				return fmt.Errorf("%s: %d has revision %d and lease %d, acknowledged with %d and %d",
					name, number, kv.ModRevision, kv.Lease, tally.revision, tally.lease)
			}
			if kv.Lease != 0 && !granted[kv.Lease] {
				return fmt.Errorf("%s: its lease %d is gone", name, kv.Lease)
			}
			// What was open is now settled, and must stay so.
			tally.acknowledged, tally.revision, tally.lease = number, kv.ModRevision, kv.Lease
		}
	}
	return nil
}

// leadingNumber reads a value: digits, then zero bytes.
func leadingNumber(value []byte) (int64, error) {
	digits := 0
	for digits < len(value) && value[digits] != 0 {
		digits++
	}
	return strconv.ParseInt(string(value[:digits]), 10, 64)
}
