package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand"
	"slices"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	largeKeys       = 6000
	largeValueBytes = 1500
)

// largeAnswers compares answers of many MiB with what was put. A server may write such an answer while it still reads.
// The keys are put in random order. They are overwritten behind the revision that is asked for, and compacted away
// while an answer is on its way.
func (c *checks) largeAnswers(ctx context.Context) error {
	random := rand.New(rand.NewSource(1))
	prefix := c.prefix + "large/"
	want := map[string][]byte{}
	var revision int64
	put := func(fill byte) error {
		order := random.Perm(largeKeys)
		for len(order) > 0 {
			var ops []clientv3.Op
			for _, number := range order[:min(100, len(order))] {
				key := fmt.Sprintf("%s%06d", prefix, number)
				value := bytes.Repeat([]byte{fill}, random.Intn(2*largeValueBytes))
				ops = append(ops, clientv3.OpPut(key, string(value)))
				want[key] = value
			}
			order = order[len(ops):]
			done, err := c.Txn(ctx).Then(ops...).Commit()
			if err != nil {
				return err
			}
			revision = done.Header.Revision
		}
		return nil
	}
	if err := put('a'); err != nil {
		return err
	}
	first, old := revision, want
	if err := c.sameLarge(ctx, prefix, old, 0); err != nil {
		return err
	}
	want = map[string][]byte{}
	if err := put('b'); err != nil {
		return err
	}
	for _, each := range []struct {
		want map[string][]byte
		at   int64
	}{{old, first}, {want, 0}, {want, revision}} {
		if err := c.sameLarge(ctx, prefix, each.want, each.at); err != nil {
			return err
		}
	}
	return c.largeBesideCompaction(ctx, prefix, old, first)
}

// largeBesideCompaction reads a revision that is compacted and swept away behind the reader. Each read gets all of it
// or is refused.
func (c *checks) largeBesideCompaction(ctx context.Context, prefix string, want map[string][]byte, at int64) error {
	done := make(chan error, 1)
	go func() {
		_, err := c.Compact(ctx, at+largeKeys/200, clientv3.WithCompactPhysical())
		done <- err
	}()
	for refused := false; !refused; {
		got, err := c.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(at))
		switch {
		case err != nil && strings.Contains(err.Error(), "compacted"):
			refused = true
		case err != nil:
			return err
		case len(got.Kvs) != len(want):
			return fmt.Errorf("%d keys beside a compaction, want %d", len(got.Kvs), len(want))
		}
	}
	return <-done
}

func (c *checks) sameLarge(ctx context.Context, prefix string, want map[string][]byte, at int64) error {
	keys := make([]string, 0, len(want))
	for key := range want {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, each := range []struct {
		name    string
		options []clientv3.OpOption
		keys    []string
		more    bool
		hasKeys bool
	}{
		{name: "all", keys: keys},
		{
			name:    "a limit",
			options: []clientv3.OpOption{clientv3.WithLimit(largeKeys / 2)},
			keys:    keys[:largeKeys/2],
			more:    true,
		},
		{name: "a limit of all", options: []clientv3.OpOption{clientv3.WithLimit(largeKeys)}, keys: keys},
		{name: "keys only", options: []clientv3.OpOption{clientv3.WithKeysOnly()}, keys: keys, hasKeys: true},
		{
			name:    "a filter that lets all through",
			options: []clientv3.OpOption{clientv3.WithMinModRev(2), clientv3.WithLimit(largeKeys - 1)},
			keys:    keys[:largeKeys-1],
			more:    true,
		},
		{name: "serializable", options: []clientv3.OpOption{clientv3.WithSerializable()}, keys: keys},
	} {
		got, err := c.Get(ctx, prefix, append(each.options, clientv3.WithPrefix(), clientv3.WithRev(at))...)
		if err != nil {
			return fmt.Errorf("%s at %d: %w", each.name, at, err)
		}
		if len(got.Kvs) != len(each.keys) || got.More != each.more || got.Count != int64(len(keys)) {
			return fmt.Errorf("%s at %d: %d keys of %d, more %v", each.name, at, len(got.Kvs), got.Count, got.More)
		}
		for i, kv := range got.Kvs {
			value := want[each.keys[i]]
			if each.hasKeys {
				value = nil
			}
			isSame := string(kv.Key) == each.keys[i] && bytes.Equal(kv.Value, value)
			if !isSame || kv.ModRevision == 0 || kv.CreateRevision == 0 {
				return fmt.Errorf("%s at %d: key %d is %q with %d bytes", each.name, at, i, kv.Key, len(kv.Value))
			}
		}
	}
	return nil
}
