package main

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"
)

const (
	putPath         = "/etcdserverpb.KV/Put"
	rangePath       = "/etcdserverpb.KV/Range"
	rangeStreamPath = "/etcdserverpb.KV/RangeStream"
	txnPath         = "/etcdserverpb.KV/Txn"
	watchPath       = "/etcdserverpb.Watch/Watch"
	keepAlivePath   = "/etcdserverpb.Lease/LeaseKeepAlive"
	leasesPath      = "/etcdserverpb.Lease/LeaseLeases"
	snapshotPath    = "/etcdserverpb.Maintenance/Snapshot"
	checkPath       = "/grpc.health.v1.Health/Check"
	healthWatchPath = "/grpc.health.v1.Health/Watch"

	grpcType = "application/grpc"
	// A server that has nothing more to say on a stream is silent for this long.
	silence = 250 * time.Millisecond
)

// stream is one HTTP/2 stream, sent as it stands here.
type stream struct {
	name   string
	method string
	path   string
	// Values of content-type; none for no such header.
	types []string
	// Names and values of other headers.
	head []string
	// What the client sends in DATA frames.
	body []byte
	// Whether the client goes on after its body: it does not say that it sends no more.
	open bool
	// What the messages of an answer are; without it their number and flags alone are compared.
	answer proto.Message
}

// call is a stream as every gRPC client begins one.
func call(name, path string, body ...[]byte) stream {
	return stream{name: name, method: "POST", path: path, types: []string{grpcType}, body: bytes.Join(body, nil)}
}

func (s stream) with(name, value string) stream {
	s.head = append(s.head[:len(s.head):len(s.head)], name, value)
	return s
}

func (s stream) typed(types ...string) stream {
	s.types = types
	return s
}

func (s stream) by(method string) stream {
	s.method = method
	return s
}

func (s stream) goingOn() stream {
	s.open = true
	return s
}

func (s stream) answered(as proto.Message) stream {
	s.answer = as
	return s
}

func message(flag byte, body []byte) []byte {
	out := binary.BigEndian.AppendUint32([]byte{flag}, uint32(len(body)))
	return append(out, body...)
}

func plain(m proto.Message) []byte {
	body, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return message(0, body)
}

func zipped(body []byte) []byte {
	var out bytes.Buffer
	writer := gzip.NewWriter(&out)
	writer.Write(body)
	writer.Close()
	return out.Bytes()
}

// streams are what both servers are sent. What they answer to must be the same at any time: nothing here waits for
// another stream.
func streams() []stream {
	put := plain(&pb.PutRequest{Key: []byte("k"), Value: bytes.Repeat([]byte("v"), 300)})
	get := plain(&pb.RangeRequest{Key: []byte("k")})
	all := plain(&pb.RangeRequest{Key: []byte("a"), RangeEnd: []byte("z")})
	create := plain(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{
		CreateRequest: &pb.WatchCreateRequest{Key: []byte("zz")},
	}})
	progress := plain(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{
		ProgressRequest: &pb.WatchProgressRequest{},
	}})
	bad := message(0, []byte("\xff\xff\xff"))
	tooLong := []byte{0, 0x7f, 0xff, 0xff, 0xff}
	zippedGet, zippedPut := zipped(get[5:]), zipped(put[5:])
	badSum := bytes.Clone(zippedPut)
	badSum[len(badSum)-6] ^= 0xff
	damaged := append(bytes.Clone(zippedPut[:10]), bytes.Repeat([]byte{0xff}, 5)...)
	bomb := message(1, zipped(make([]byte, 40<<20)))
	gzipped := func(name, path string, body ...[]byte) stream {
		return call(name, path, body...).with("grpc-encoding", "gzip")
	}
	return []stream{
		call("put", putPath, put).answered(&pb.PutResponse{}),
		call("get", rangePath, get).answered(&pb.RangeResponse{}),
		call("a get that goes on", rangePath, get).goingOn().answered(&pb.RangeResponse{}),
		call("range stream", rangeStreamPath, all).answered(&pb.RangeStreamResponse{}),
		call("range stream of nothing", rangeStreamPath, plain(&pb.RangeRequest{Key: []byte("none")})).
			answered(&pb.RangeStreamResponse{}),

		// Compression.
		gzipped("gzip", rangePath, message(1, zippedGet)).answered(&pb.RangeResponse{}),
		gzipped("gzip named, not used", rangePath, get).answered(&pb.RangeResponse{}),
		gzipped("gzip of two members", rangePath, message(1, append(zipped(get[5:6]), zipped(get[6:])...))).
			answered(&pb.RangeResponse{}),
		gzipped("gzip, identity accepted", rangePath, message(1, zippedGet)).with("grpc-accept-encoding", "identity").
			answered(&pb.RangeResponse{}),
		call("gzip accepted", rangePath, get).with("grpc-accept-encoding", "gzip,identity").
			answered(&pb.RangeResponse{}),
		gzipped("gzip range stream", rangeStreamPath, message(1, zipped(all[5:]))).answered(&pb.RangeStreamResponse{}),
		gzipped("gzip watch", watchPath, message(1, zipped(create[5:]))).answered(&pb.WatchResponse{}),
		gzipped("gzip keep-alive", keepAlivePath, message(1, zipped([]byte("\x08\x05")))).
			answered(&pb.LeaseKeepAliveResponse{}),
		gzipped("gzip health", checkPath, message(0, nil)).answered(&healthpb.HealthCheckResponse{}),
		gzipped("gzip error", rangePath, message(1, zipped(nil))),
		gzipped("gzip bad message", rangePath, message(1, zipped(bad[5:]))),
		gzipped("not gzip", rangePath, message(1, []byte("not gzip at all"))),
		gzipped("gzip of no bytes", rangePath, message(1, nil)),
		gzipped("gzip cut", rangePath, message(1, zippedGet[:14])),
		gzipped("gzip head cut", rangePath, message(1, zippedGet[:5])),
		gzipped("gzip sum", putPath, message(1, badSum)),
		gzipped("gzip damaged", putPath, message(1, damaged)),
		gzipped("gzip and more", rangePath, message(1, append(bytes.Clone(zippedGet), 'x'))),
		gzipped("gzip bomb", putPath, bomb),
		gzipped("gzip bomb for a stream", watchPath, bomb),
		gzipped("payload format 2", rangePath, message(2, zippedGet)),
		call("compressed, unnamed", rangePath, message(1, zippedGet)),
		call("compressed, identity", rangePath, message(1, zippedGet)).with("grpc-encoding", "identity"),
		call("identity", rangePath, get).with("grpc-encoding", "identity").answered(&pb.RangeResponse{}),
		call("empty encoding", rangePath, get).with("grpc-encoding", "").answered(&pb.RangeResponse{}),
		call("snappy", rangePath, message(1, get[5:])).with("grpc-encoding", "snappy"),
		call("snappy named, not used", rangePath, get).with("grpc-encoding", "snappy"),
		call("snappy stream", watchPath, create).with("grpc-encoding", "snappy"),
		call("snappy, no such method", "/a.B/C", get).with("grpc-encoding", "snappy"),
		call("GZIP", rangePath, message(1, zippedGet)).with("grpc-encoding", "GZIP"),

		// Heads.
		call("json", rangePath, get).typed("application/json"),
		call("json that goes on", rangePath, get).typed("application/json").goingOn(),
		call("no type", rangePath, get).typed(),
		call("+proto", rangePath, get).typed("application/grpc+proto").answered(&pb.RangeResponse{}),
		call(";proto", rangePath, get).typed("application/grpc;proto").answered(&pb.RangeResponse{}),
		call("+", rangePath, get).typed("application/grpc+").answered(&pb.RangeResponse{}),
		call("+json", rangePath, get).typed("application/grpc+json").answered(&pb.RangeResponse{}),
		call("odd type, no such method", "/a/b", get).typed("application/grpc+We ird"),
		call("grpcx", rangePath, get).typed("application/grpcx"),
		call("grpc-web", rangePath, get).typed("application/grpc-web"),
		call("Application", rangePath, get).typed("Application/grpc"),
		call("two types", rangePath, get).typed("text/plain", grpcType).answered(&pb.RangeResponse{}),
		call("GET", rangePath).by("GET"),
		call("GET that goes on", rangePath).by("GET").goingOn(),
		call("GET /health", "/health").by("GET").typed(),
		call("PUT +proto", rangePath, get).by("PUT").typed("application/grpc+proto"),
		call("PUT, malformed path", "/a", get).by("PUT"),
		call("no such method", "/etcdserverpb.KV/X", get),
		call("no such service", "/x/X", get),
		call("malformed path", "/x", get),
		call("timeout x", rangePath, get).with("grpc-timeout", "x"),
		call("timeout without unit", rangePath, get).with("grpc-timeout", "15"),
		call("timeout empty", rangePath, get).with("grpc-timeout", ""),
		call("timeout too long", rangePath, get).with("grpc-timeout", "123456789S"),
		call("timeout -1S", rangePath, get).with("grpc-timeout", "-1S"),
		call("timeout +1S", rangePath, get).with("grpc-timeout", "+1S"),
		call("timeout 1 S", rangePath, get).with("grpc-timeout", "1 S"),
		call("longest timeout", rangePath, get).with("grpc-timeout", "99999999H").answered(&pb.RangeResponse{}),
		call("no time", rangePath, get).with("grpc-timeout", "0S"),
		call("no time, going on", rangePath, get).with("grpc-timeout", "0S").goingOn(),
		call("no time, no such method", "/a/b", get).with("grpc-timeout", "0S"),
		call("no time, GET", rangePath, get).by("GET").with("grpc-timeout", "0S"),
		call("version that is no text", rangePath, get).with("client-api-version", "\xff"),
		call("version that is no text, stream", watchPath, create).with("client-api-version", "\xff"),

		// Messages.
		call("bad put", putPath, bad),
		call("bad get", rangePath, bad),
		call("field 0", rangePath, message(0, []byte("\x00\x01"))),
		call("key cut", rangePath, message(0, []byte("\x0a\x05ab"))),
		call("group", rangePath, message(0, []byte("\x7b\x7c"))),
		call("open group", rangePath, message(0, []byte("\x7b"))),
		call("end of no group", rangePath, message(0, []byte("\x7c"))),
		call("text that is none", checkPath, message(0, []byte("\x0a\x01\xff"))),
		call("bad txn", txnPath, bad),
		call("bad watch", watchPath, bad).goingOn(),
		call("bad keep-alive", keepAlivePath, bad).goingOn(),
		call("bad range stream", rangeStreamPath, bad),
		call("bad snapshot", snapshotPath, bad),
		call("bad health watch", healthWatchPath, bad),
		call("body for none", leasesPath, message(0, []byte("\x08\x05\x12\x01a"))).answered(&pb.LeaseLeasesResponse{}),
		call("empty put", putPath, message(0, nil)),
		call("put without message", putPath),
		call("leases without message", leasesPath),
		call("put, prefix cut", putPath, put[:3]),
		call("put cut", putPath, put[:30]),
		call("two puts", putPath, put, put).answered(&pb.PutResponse{}),
		call("put and more", putPath, put, []byte{1, 2}).answered(&pb.PutResponse{}),
		call("range stream without message", rangeStreamPath),
		call("range stream, prefix cut", rangeStreamPath, get[:3]),
		call("range stream cut", rangeStreamPath, get[:6]),
		call("two range streams", rangeStreamPath, get, get),
		call("two range streams, one cut", rangeStreamPath, get, get[:6]),
		call("two range streams, one bad", rangeStreamPath, get, bad),
		call("range stream that goes on", rangeStreamPath, get).goingOn(),
		call("two snapshots", snapshotPath, message(0, nil), message(0, nil)),
		call("two health watches", healthWatchPath, message(0, nil), message(0, nil)),
		call("health watch", healthWatchPath, message(0, nil)).answered(&healthpb.HealthCheckResponse{}),
		call("health watch that goes on", healthWatchPath, message(0, nil)).goingOn(),
		call("watch without message", watchPath),
		call("watch, half-closed", watchPath, create).answered(&pb.WatchResponse{}),
		call("watch cut", watchPath, create[:7]),
		call("watch for nothing", watchPath, message(0, nil)).goingOn(),
		call("progress of nothing", watchPath, progress).goingOn(),
		call("keep-alive without message", keepAlivePath),
		call("keep-alive, prefix cut", keepAlivePath, []byte{0, 0}),
		call("too long put", putPath, tooLong).goingOn(),
		call("too long watch", watchPath, tooLong).goingOn(),
		call("too long range stream", rangeStreamPath, tooLong).goingOn(),
	}
}

// runWire sends both servers the same streams, and compares what comes back.
func runWire(opt options) error {
	var servers [2]*server
	for side, binary := range [2]string{opt.etcd, opt.orlop} {
		flags := [2]string{opt.etcdFlags, opt.orlopFlags}[side]
		server, err := newServer(sideNames[side], binary, flags, opt.dataDir, credentials{})
		if err != nil {
			return err
		}
		defer server.discard()
		servers[side] = server
	}
	var errs [2]error
	onBoth(func(side int) { errs[side] = servers[side].start() })
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	different := 0
	all := streams()
	for _, s := range all {
		var told [2]string
		onBoth(func(side int) { told[side], errs[side] = s.send(servers[side].port) })
		if err := errors.Join(errs[:]...); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if told[etcd] != told[orlop] {
			different++
			fmt.Fprintf(os.Stdout, "%s differs\n--- etcd\n%s--- orlop\n%s\n", s.name, told[etcd], told[orlop])
		}
	}
	if different > 0 {
		return fmt.Errorf("%d of %d streams were answered otherwise", different, len(all))
	}
	fmt.Printf("%d streams: equal\n", len(all))
	return nil
}

// send returns what a server sends back on the stream, one thing a line.
func (s stream) send(port int) (string, error) {
	conn, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(port))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	framer := http2.NewFramer(conn, conn)
	io.WriteString(conn, http2.ClientPreface)
	framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
	framer.WriteWindowUpdate(0, 1<<30)
	endsWithHead := len(s.body) == 0 && s.method == "GET" && !s.open
	framer.WriteHeaders(http2.HeadersFrameParam{
		StreamID: 1, BlockFragment: s.encodedHead(), EndHeaders: true, EndStream: endsWithHead,
	})
	for body := s.body; len(body) > 0; {
		piece := body[:min(len(body), 16<<10)]
		body = body[len(piece):]
		framer.WriteData(1, len(body) == 0 && !s.open, piece)
	}
	if len(s.body) == 0 && !s.open && !endsWithHead {
		framer.WriteData(1, true, nil)
	}
	return s.receive(conn, framer)
}

func (s stream) encodedHead() []byte {
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	fields := []string{":method", s.method, ":scheme", "http", ":path", s.path, ":authority", "here"}
	for _, value := range s.types {
		fields = append(fields, "content-type", value)
	}
	fields = append(append(fields, "te", "trailers"), s.head...)
	for i := 0; i < len(fields); i += 2 {
		encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return block.Bytes()
}

func (s stream) receive(conn net.Conn, framer *http2.Framer) (string, error) {
	var lines strings.Builder
	var data []byte
	decoder := hpack.NewDecoder(4096, nil)
	for {
		conn.SetReadDeadline(time.Now().Add(silence))
		frame, err := framer.ReadFrame()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return lines.String() + "and is silent\n", nil
		}
		if err != nil {
			return "", err
		}
		if data, ok := frame.(*http2.DataFrame); ok && data.StreamEnded() {
			lines.WriteString("ends without a status\n")
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				framer.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !frame.IsAck() {
				framer.WritePing(true, frame.Data)
			}
		case *http2.DataFrame:
			data = append(data, frame.Data()...)
			for len(data) >= 5 && len(data) >= 5+int(binary.BigEndian.Uint32(data[1:])) {
				length := 5 + int(binary.BigEndian.Uint32(data[1:]))
				lines.WriteString(s.shown(data[:length]))
				data = data[length:]
			}
		case *http2.HeadersFrame:
			fields, err := decoder.DecodeFull(frame.HeaderBlockFragment())
			if err != nil {
				return "", err
			}
			lines.WriteString(headLine(fields))
			if frame.StreamEnded() {
				return lines.String(), nil
			}
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			fmt.Fprintf(&lines, "%v\n", frame)
		}
	}
}

func headLine(fields []hpack.HeaderField) string {
	var line strings.Builder
	for _, field := range fields {
		value := field.Value
		switch {
		case field.Name == "grpc-message" && value == "":
			// An empty text and none are the same to clients.
			continue
		case field.Name == "grpc-message":
			// Go's protobuf chooses this space by the build.
			value = strings.ReplaceAll(value, "proto:%C2%A0", "proto: ")
			// Nobody else can know where in the data Go's decompressor stands.
			value, _, _ = strings.Cut(value, " before offset")
		}
		fmt.Fprintf(&line, "%s=%q ", field.Name, value)
	}
	return line.String() + "\n"
}

// shown is a framed message as text, with what differs between any two servers masked.
func (s stream) shown(framed []byte) string {
	flag, body := framed[0], framed[5:]
	if flag == 1 {
		reader, err := gzip.NewReader(bytes.NewReader(body))
		if err == nil {
			body, err = io.ReadAll(reader)
		}
		if err != nil {
			return fmt.Sprintf("message that cannot be read: %v\n", err)
		}
	}
	if s.answer == nil {
		return fmt.Sprintf("message, flag %d\n", flag)
	}
	response := proto.Clone(s.answer)
	if err := proto.Unmarshal(body, response); err != nil {
		return fmt.Sprintf("message that cannot be read: %v\n", err)
	}
	maskHeaders(response.ProtoReflect())
	text, err := proto.MarshalOptions{Deterministic: true}.Marshal(response)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("message, flag %d: %q\n", flag, text)
}
