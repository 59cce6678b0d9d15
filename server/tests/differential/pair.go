package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
)

const (
	// The reference and the server under test, as positions in a pair.
	etcd  = 0
	orlop = 1

	callTimeout = 30 * time.Second
)

var sideNames = [2]string{"etcd", "orlop"}

// outcome is what a client saw of one request.
type outcome struct {
	response proto.Message
	code     codes.Code
	text     string
}

func (o outcome) String() string {
	if o.code != codes.OK {
		return fmt.Sprintf("%v %q", o.code, o.text)
	}
	return show(o.response)
}

func show(message proto.Message) string {
	const most = 6000
	text := prototext.MarshalOptions{Multiline: true}.Format(message)
	text = strings.ReplaceAll(text, strings.Repeat(`\x00`, 100), `(100 x \x00)`)
	if len(text) > most {
		text = text[:most] + fmt.Sprintf("... (%d bytes)", len(text))
	}
	return text
}

// difference is what this program looks for. Every other error is a failure of its own.
type difference struct {
	method  string
	request proto.Message
	reason  string
	sides   [2]string
}

func (d *difference) Error() string {
	request := ""
	if d.request != nil {
		request = show(d.request)
	}
	return fmt.Sprintf("%s\n%s {\n%s}\n--- etcd\n%s\n--- orlop\n%s",
		d.reason, d.method, request, d.sides[etcd], d.sides[orlop])
}

// onBoth runs act for both servers at once.
func onBoth(act func(side int)) {
	var other sync.WaitGroup
	other.Go(func() { act(orlop) })
	act(etcd)
	other.Wait()
}

func failed(err error) outcome {
	s := status.Convert(err)
	return outcome{code: s.Code(), text: s.Message()}
}

func callContext(leader bool) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	if leader {
		ctx = metadata.AppendToOutgoingContext(ctx, "hasleader", "true")
	}
	return ctx, cancel
}

func invoke(conn *grpc.ClientConn, method string, request, response proto.Message, leader bool) outcome {
	ctx, cancel := callContext(leader)
	defer cancel()
	if err := conn.Invoke(ctx, method, request, response); err != nil {
		return failed(err)
	}
	return outcome{response: response}
}

// rangeStream merges the pieces into one response, and checks which piece holds what.
func rangeStream(conn *grpc.ClientConn, request *pb.RangeRequest) outcome {
	ctx, cancel := callContext(false)
	defer cancel()
	stream, err := pb.NewKVClient(conn).RangeStream(ctx, request)
	if err != nil {
		return failed(err)
	}
	whole := &pb.RangeResponse{}
	isComplete := false
	for {
		piece, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return failed(err)
		}
		if isComplete {
			return outcome{code: codes.DataLoss, text: "a piece after the one with the header"}
		}
		isComplete = piece.RangeResponse.GetHeader() != nil
		if !isComplete && (piece.RangeResponse.GetCount() != 0 || piece.RangeResponse.GetMore()) {
			return outcome{code: codes.DataLoss, text: "count or more in a piece that is not the last"}
		}
		if piece.RangeResponse != nil {
			proto.Merge(whole, piece.RangeResponse)
		}
	}
	if !isComplete {
		return outcome{code: codes.DataLoss, text: "the last piece has no header"}
	}
	return outcome{response: whole}
}

// judge returns a difference unless both outcomes are the same to a client.
func judge(method string, request proto.Message, ports [2]int, tolerance int64, outcomes [2]outcome) error {
	isEqual := outcomes[etcd].code == outcomes[orlop].code && outcomes[etcd].text == outcomes[orlop].text
	if isEqual && outcomes[etcd].code == codes.OK {
		for side := range outcomes {
			outcomes[side].response = mask(request, outcomes[side].response, ports[side])
		}
		alignTTL(outcomes[etcd].response, outcomes[orlop].response, tolerance)
		isEqual = proto.Equal(outcomes[etcd].response, outcomes[orlop].response)
	}
	if isEqual {
		return nil
	}
	return &difference{
		method: method, request: request, reason: "answers differ",
		sides: [2]string{outcomes[etcd].String(), outcomes[orlop].String()},
	}
}
