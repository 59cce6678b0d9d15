package main

import (
	"bytes"
	"cmp"
	"slices"
	"strconv"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// ttlTolerance is how many seconds two clocks may differ by. The time by which one server started later than the other
// comes on top, because a server that starts gives every lease its full time again.
const ttlTolerance = 3

// mask returns a copy of response without what may differ between two right servers. The request tells what that is.
func mask(request, response proto.Message, port int) proto.Message {
	masked := proto.Clone(response)
	maskHeaders(masked.ProtoReflect())
	switch response := masked.(type) {
	case *pb.RangeResponse:
		maskTies(request.(*pb.RangeRequest), response)
	case *pb.TxnResponse:
		maskTxnTies(request.(*pb.TxnRequest), response)
	case *pb.StatusResponse:
		maskStatus(response)
	case *pb.MemberListResponse:
		// The order of ids is that of ports.
		slices.SortFunc(response.Members, func(a, b *pb.Member) int { return cmp.Compare(a.Name, b.Name) })
		for _, member := range response.Members {
			member.ID = present(member.ID)
			for i, url := range member.ClientURLs {
				masked := strings.ReplaceAll(url, strconv.Itoa(port), "PORT")
				if host, _, ok := strings.Cut(url, "127.0.0.1:"); ok && len(response.Members) > 1 {
					masked = host + "127.0.0.1:PORT"
				}
				member.ClientURLs[i] = masked
			}
			for i := range member.PeerURLs {
				host, _, _ := strings.Cut(strings.TrimPrefix(member.PeerURLs[i], "http://"), ":")
				member.PeerURLs[i] = "http://" + host + ":PORT"
			}
		}
	case *pb.LeaseTimeToLiveResponse:
		slices.SortFunc(response.Keys, bytes.Compare)
	case *pb.LeaseLeasesResponse:
		slices.SortFunc(response.Leases, func(a, b *pb.LeaseStatus) int { return cmp.Compare(a.ID, b.ID) })
	case *pb.HashResponse:
		response.Hash = 1
	}
	return masked
}

// alignTTL makes the remaining times of two responses equal if they are close to each other.
func alignTTL(a, b proto.Message, tolerance int64) {
	one, ok := a.(*pb.LeaseTimeToLiveResponse)
	if !ok {
		return
	}
	other := b.(*pb.LeaseTimeToLiveResponse)
	if one.TTL >= 0 && other.TTL >= 0 && max(one.TTL-other.TTL, other.TTL-one.TTL) <= tolerance {
		other.TTL = one.TTL
	}
}

func present[T uint64 | int64](value T) T {
	if value == 0 {
		return 0
	}
	return 1
}

// maskHeaders replaces ids and terms by whether they are set at all.
func maskHeaders(message protoreflect.Message) {
	if header, ok := message.Interface().(*pb.ResponseHeader); ok {
		header.ClusterId, header.MemberId = present(header.ClusterId), present(header.MemberId)
		header.RaftTerm = present(header.RaftTerm)
		return
	}
	message.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.IsMap() || field.Message() == nil:
		case field.IsList():
			for i := range value.List().Len() {
				maskHeaders(value.List().Get(i).Message())
			}
		default:
			maskHeaders(value.Message())
		}
		return true
	})
}

func maskStatus(status *pb.StatusResponse) {
	status.DbSize, status.DbSizeInUse = present(status.DbSize), present(status.DbSizeInUse)
	status.Leader, status.RaftTerm = present(status.Leader), present(status.RaftTerm)
	status.RaftIndex, status.RaftAppliedIndex = present(status.RaftIndex), present(status.RaftAppliedIndex)
}

// maskTies puts runs of equals into key order. etcd's sort is unstable. So the order of equals is open, and so is which
// of them a limit cuts off.
func maskTies(request *pb.RangeRequest, response *pb.RangeResponse) {
	if request.SortTarget == pb.RangeRequest_KEY {
		return
	}
	byKey := func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.Key, b.Key) }
	equal := func(a, b *mvccpb.KeyValue) bool {
		switch request.SortTarget {
		case pb.RangeRequest_VERSION:
			return a.Version == b.Version
		case pb.RangeRequest_CREATE:
			return a.CreateRevision == b.CreateRevision
		case pb.RangeRequest_MOD:
			return a.ModRevision == b.ModRevision
		default:
			// With keys_only the values are gone, and all look equal.
			return bytes.Equal(a.Value, b.Value)
		}
	}
	kvs := response.Kvs
	for start := 0; start < len(kvs); {
		end := start + 1
		for end < len(kvs) && equal(kvs[start], kvs[end]) {
			end++
		}
		if end == len(kvs) && response.More {
			for i := start; i < end; i++ {
				kvs[i] = &mvccpb.KeyValue{Key: []byte("one of several equals")}
			}
		} else {
			slices.SortFunc(kvs[start:end], byKey)
		}
		start = end
	}
}

func maskTxnTies(request *pb.TxnRequest, response *pb.TxnResponse) {
	ops := request.Failure
	if response.Succeeded {
		ops = request.Success
	}
	for i, op := range response.Responses {
		if i >= len(ops) {
			return
		}
		if r, ok := op.Response.(*pb.ResponseOp_ResponseRange); ok && ops[i].GetRequestRange() != nil {
			maskTies(ops[i].GetRequestRange(), r.ResponseRange)
		}
		if r, ok := op.Response.(*pb.ResponseOp_ResponseTxn); ok && ops[i].GetRequestTxn() != nil {
			maskTxnTies(ops[i].GetRequestTxn(), r.ResponseTxn)
		}
	}
}
