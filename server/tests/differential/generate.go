package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// generator makes requests. It knows the store's revisions and its leases, so most requests mean something. A fair part
// is wrong on purpose. There are few keys, values and lease ids, so requests often concern the same ones.
type generator struct {
	*rand.Rand
	// Revisions of the store, from etcd's answers.
	current, compacted int64
	// The number of keys beside the few. With them trees have many leaves and ranges have many pieces, but requests
	// concern the same key less often.
	many int
}

var keys = [][]byte{
	{0}, {0, 0}, {0, 1},
	[]byte("a"), []byte("a\x00"), []byte("a\xff"), []byte("aa"), []byte("ab"),
	[]byte("b"), []byte("b/1"), []byte("b/2"), []byte("b/2/x"), []byte("b/3"), []byte("b0"),
	[]byte("c"), []byte("c\xff\xff"),
	[]byte("d"), []byte("d1"), []byte("d2"), []byte("d3"),
	[]byte("e"), []byte("\u00e9"),
	{0xfe}, {0xff}, {0xff, 0}, {0xff, 0xff},
}

var leaseIDs = []int64{1, 2, 3, 4, 5, 6, 7, 8, 1 << 40, 1<<63 - 1, -5, -1 << 63}

func pick[T any](g *generator, of ...T) T { return of[g.IntN(len(of))] }

func (g *generator) percent(chance float64) bool { return g.Float64()*100 < chance }

func (g *generator) key() []byte {
	if g.percent(0.5) {
		return nil
	}
	return g.someKey()
}

func (g *generator) someKey() []byte {
	if g.many > 0 && g.percent(50) {
		return manyKey(g.IntN(g.many))
	}
	return pick(g, keys...)
}

func manyKey(at int) []byte { return fmt.Appendf(nil, "b/many/%06d", at) }

// keyRange draws from all the meanings of range_end, empty and inverted ranges included.
func (g *generator) keyRange() (key, end []byte) {
	key = g.key()
	switch g.IntN(10) {
	case 0, 1:
		return key, nil
	case 2:
		return key, []byte{0}
	case 3:
		return []byte{0}, []byte{0}
	case 4, 5:
		return key, prefixEnd(key)
	case 6:
		return key, append(bytes.Clone(key), 0)
	default:
		end = g.someKey()
		if bytes.Compare(key, end) > 0 && !g.percent(15) {
			key, end = end, key
		}
		return key, end
	}
}

func prefixEnd(prefix []byte) []byte {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] < 0xff {
			end := bytes.Clone(prefix[:i+1])
			end[i]++
			return end
		}
	}
	return []byte{0}
}

func (g *generator) value() []byte {
	switch chance := g.Float64() * 100; {
	case chance < 10:
		return nil
	case chance < 11:
		return bytes.Repeat([]byte{byte(g.Uint32())}, 30<<10+g.IntN(10<<10))
	case chance < 50:
		return pick(g, []byte("x"), []byte("y"), []byte{0}, []byte{0xff})
	}
	value := make([]byte, g.IntN(60))
	for i := range value {
		value[i] = byte(g.Uint32())
	}
	return value
}

func (g *generator) leaseID() int64 { return pick(g, leaseIDs...) }

// revision draws a revision. Most of them can be read.
func (g *generator) revision() int64 {
	switch chance := g.Float64() * 100; {
	case chance < 3:
		return pick[int64](g, -1, -7, -1<<63)
	case chance < 6:
		return g.current + 1 + g.Int64N(3)
	case chance < 9:
		return 1<<63 - 1 - g.Int64N(2)
	case chance < 14:
		return max(g.compacted, 1) - g.Int64N(3)
	}
	return g.pastRevision()
}

// pastRevision draws a revision that can be read.
func (g *generator) pastRevision() int64 {
	oldest := max(g.compacted, 1)
	newest := max(g.current, oldest)
	if g.percent(60) {
		oldest = max(oldest, newest-40)
	}
	return oldest + g.Int64N(newest-oldest+1)
}

func (g *generator) rangeRequest() *pb.RangeRequest {
	r := &pb.RangeRequest{Serializable: g.percent(20), KeysOnly: g.percent(15), CountOnly: g.percent(10)}
	r.Key, r.RangeEnd = g.keyRange()
	if g.percent(40) {
		r.Limit = pick[int64](g, 1, 2, 3, 5, 10, 25, 1000, -1, 1<<63-1, 1<<63-2)
	}
	if g.percent(40) {
		r.Revision = g.revision()
	}
	if g.percent(30) {
		r.SortOrder = pick(g, pb.RangeRequest_NONE, pb.RangeRequest_ASCEND, pb.RangeRequest_DESCEND)
		r.SortTarget = pb.RangeRequest_SortTarget(g.IntN(5))
		if g.percent(2) {
			r.SortOrder = 7
		}
		if g.percent(2) {
			r.SortTarget = pick[pb.RangeRequest_SortTarget](g, 9, -1)
		}
	}
	if g.percent(15) {
		bounds := []*int64{&r.MinModRevision, &r.MaxModRevision, &r.MinCreateRevision, &r.MaxCreateRevision}
		for _, bound := range bounds {
			if g.percent(40) {
				*bound = g.revision()
			}
		}
	}
	return r
}

func (g *generator) put() *pb.PutRequest {
	r := &pb.PutRequest{Key: g.key(), Value: g.value(), PrevKv: g.percent(30)}
	if g.percent(30) {
		r.Lease = g.leaseID()
	}
	if g.percent(8) {
		r.IgnoreValue = true
		if !g.percent(10) {
			r.Value = nil
		}
	}
	if g.percent(8) {
		r.IgnoreLease = true
		if !g.percent(10) {
			r.Lease = 0
		}
	}
	return r
}

// oversizePut is about as large as one of the limits, or larger: the limit of a request or that of a gRPC message.
func (g *generator) oversizePut() *pb.PutRequest {
	if g.percent(40) {
		return &pb.PutRequest{Key: g.key(), Value: make([]byte, maxRequestBytes+pick(g, 0, 512<<10)+g.IntN(1000))}
	}
	// The limit is one of the log entry. Its id takes seven to ten bytes, depending on the low bits of the member's own
	// id. Entries that only some members' ids make too long are left out.
	put := &pb.PutRequest{Key: pick(g, keys...), Value: make([]byte, maxRequestBytes-100)}
	entry := &pb.InternalRaftRequest{Header: &pb.RequestHeader{ID: 1 << 62}, Put: put}
	put.Value = make([]byte, len(put.Value)+maxRequestBytes-proto.Size(entry)+pick(g, -1, -1, 3))
	return put
}

func (g *generator) deleteRange() *pb.DeleteRangeRequest {
	r := &pb.DeleteRangeRequest{PrevKv: g.percent(40)}
	r.Key, r.RangeEnd = g.keyRange()
	// Mostly one key. Otherwise the store would be empty most of the time.
	if g.percent(75) || g.many > 0 && g.percent(95) {
		r.RangeEnd = nil
	}
	return r
}

func (g *generator) compare() *pb.Compare {
	c := &pb.Compare{
		Result: pb.Compare_CompareResult(g.IntN(4)),
		Target: pb.Compare_CompareTarget(g.IntN(5)),
		Key:    g.key(),
	}
	if g.percent(30) {
		c.Key, c.RangeEnd = g.keyRange()
	}
	target := c.Target
	switch chance := g.Float64() * 100; {
	case chance < 1:
		c.Result = pick[pb.Compare_CompareResult](g, 9, -1)
	case chance < 2:
		c.Target = pick[pb.Compare_CompareTarget](g, 9, -1)
	case chance < 5:
		target = pb.Compare_CompareTarget(g.IntN(5))
	case chance < 10:
		return c
	}
	switch target {
	case pb.Compare_VERSION:
		c.TargetUnion = &pb.Compare_Version{Version: g.Int64N(6) - 1}
	case pb.Compare_CREATE:
		c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: pick(g, 0, g.pastRevision())}
	case pb.Compare_MOD:
		c.TargetUnion = &pb.Compare_ModRevision{ModRevision: pick(g, 0, g.pastRevision())}
	case pb.Compare_VALUE:
		c.TargetUnion = &pb.Compare_Value{Value: g.value()}
	case pb.Compare_LEASE:
		c.TargetUnion = &pb.Compare_Lease{Lease: pick(g, 0, g.leaseID())}
	}
	return c
}

func (g *generator) ops(depth, most int) []*pb.RequestOp {
	ops := make([]*pb.RequestOp, 0, most)
	for range g.IntN(most + 1) {
		switch chance := g.Float64() * 100; {
		case chance < 0.3:
			ops = append(ops, &pb.RequestOp{})
		case chance < 35:
			ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: g.rangeInTxn()}})
		case chance < 75:
			ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: g.putInTxn()}})
		case chance < 88 || depth == 0:
			deletion := &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: g.deleteRange()}
			ops = append(ops, &pb.RequestOp{Request: deletion})
		default:
			ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: g.anyTxn(depth - 1)}})
		}
	}
	return ops
}

// rangeInTxn and putInTxn are wrong less often, because one wrong part makes a server refuse the whole transaction.
func (g *generator) rangeInTxn() *pb.RangeRequest {
	r := g.rangeRequest()
	if g.percent(80) && r.Revision != 0 {
		r.Revision = g.pastRevision()
	}
	return r
}

func (g *generator) putInTxn() *pb.PutRequest {
	p := g.put()
	if g.percent(80) {
		p.IgnoreLease, p.IgnoreValue = false, false
	}
	if g.percent(60) {
		p.Lease = 0
	}
	if len(p.Value) > 1000 {
		p.Value = p.Value[:1000]
	}
	return p
}

// txn makes a transaction that etcd survives. etcd panics if an open-ended delete takes a key and a later put of the
// same transaction wants to keep that key's value or lease.
func (g *generator) txn(depth int) *pb.TxnRequest {
	t := g.anyTxn(depth)
	if hasOpenDelete(t) {
		replaceAll(t)
	}
	return t
}

func eachOp(t *pb.TxnRequest, visit func(*pb.RequestOp)) {
	for _, op := range append(slices.Clone(t.Success), t.Failure...) {
		visit(op)
		if nested := op.GetRequestTxn(); nested != nil {
			eachOp(nested, visit)
		}
	}
}

func hasOpenDelete(t *pb.TxnRequest) (has bool) {
	eachOp(t, func(op *pb.RequestOp) {
		has = has || bytes.Equal(op.GetRequestDeleteRange().GetRangeEnd(), []byte{0})
	})
	return has
}

func replaceAll(t *pb.TxnRequest) {
	eachOp(t, func(op *pb.RequestOp) {
		if put := op.GetRequestPut(); put != nil {
			put.IgnoreValue, put.IgnoreLease = false, false
		}
	})
}

func (g *generator) anyTxn(depth int) *pb.TxnRequest {
	t := &pb.TxnRequest{Success: g.ops(depth, 4), Failure: g.ops(depth, 3)}
	for range g.IntN(4) {
		t.Compare = append(t.Compare, g.compare())
	}
	return t
}

// readOnlyTxn makes a transaction that does not go through the log.
func (g *generator) readOnlyTxn() *pb.TxnRequest {
	t := &pb.TxnRequest{}
	for range g.IntN(3) {
		t.Compare = append(t.Compare, g.compare())
	}
	for _, ops := range []*[]*pb.RequestOp{&t.Success, &t.Failure} {
		for range g.IntN(3) {
			*ops = append(*ops, &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: g.rangeRequest()}})
		}
	}
	return t
}

// bulk puts keys that lie together.
func (g *generator) bulk() *pb.TxnRequest {
	t := &pb.TxnRequest{}
	for at := g.IntN(g.many); at < g.many && len(t.Success) < maxTxnOps; at += 1 + g.IntN(2) {
		value := g.value()
		put := &pb.PutRequest{Key: manyKey(at), Value: value[:min(len(value), 200)]}
		t.Success = append(t.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: put}})
	}
	return t
}

// longTxn has about as many operations as the limit allows, at the top or in a nested transaction.
func (g *generator) longTxn() *pb.TxnRequest {
	count := maxTxnOps + g.IntN(3) - 1
	ops := make([]*pb.RequestOp, count)
	for i := range ops {
		key := append([]byte("long/"), byte(i))
		put := &pb.PutRequest{Key: key, Value: g.value()[:0]}
		ops[i] = &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: put}}
	}
	t := &pb.TxnRequest{Success: ops}
	if g.percent(50) {
		t = &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestTxn{RequestTxn: t}}}}
	}
	return t
}

func (g *generator) compaction() *pb.CompactionRequest {
	c := &pb.CompactionRequest{Physical: g.percent(60)}
	switch chance := g.Float64() * 100; {
	case chance < 5:
		c.Revision = g.current + 1 + g.Int64N(5)
	case chance < 15:
		c.Revision = g.compacted - g.Int64N(3)
	case chance < 20:
		c.Revision = pick[int64](g, 0, -1, -9)
	case chance < 25:
		c.Revision = g.current
	default:
		c.Revision = g.pastRevision()
	}
	return c
}

// grant asks for times to live that do not end during a run.
func (g *generator) grant() *pb.LeaseGrantRequest {
	r := &pb.LeaseGrantRequest{ID: g.leaseID(), TTL: 1000 + g.Int64N(8000)}
	if g.percent(5) {
		r.TTL = pick[int64](g, 9_000_000_000, 9_000_000_001, 1<<63-1)
	}
	return r
}
