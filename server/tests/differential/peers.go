package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

const (
	// A lease that both servers have.
	knownLease = 77
	// What etcd answers in pieces, and breaks off before the end.
	brokenOff = "error processing raft message\n"
)

var (
	probedAt = regexp.MustCompile(`"Now":"[^"]*"`)
	// It follows from the length of what is masked.
	length = regexp.MustCompile(`Content-Length: [0-9]+`)
)

// own is what differs from one member to another, and is put into requests and taken out of answers.
type own struct {
	cluster, member uint64
	peer, client    string
}

func (o own) fill(request string) string {
	return strings.NewReplacer("{cluster}", fmt.Sprintf("%x", o.cluster), "{member}", fmt.Sprintf("%x", o.member),
		"{decimal}", strconv.FormatUint(o.member, 10)).Replace(request)
}

func (o own) mask(answer string) string {
	masked := strings.NewReplacer(fmt.Sprintf("%x", o.cluster), "{cluster}", fmt.Sprintf("%x", o.member), "{member}",
		strconv.FormatUint(o.member, 10), "{decimal}", strconv.FormatUint(o.cluster, 10), "{decimal cluster}",
		o.peer, "{peer}", o.client, "{client}").Replace(answer)
	masked = probedAt.ReplaceAllString(masked, `"Now":""`)
	if masked == answer {
		return masked
	}
	return length.ReplaceAllString(masked, "Content-Length: ")
}

// peerRequests are requests to the peer port whose answers are the same but for what is masked. Not among them: streams
// that are granted, and /raft/snapshot with a body.
func peerRequests() (requests []string) {
	add := func(method, target, headers, body string) {
		if body != "" {
			headers += "Content-Length: " + strconv.Itoa(len(body)) + "\r\n"
		}
		requests = append(requests, method+" "+target+" HTTP/1.1\r\nHost: x\r\n"+headers+"\r\n"+body)
	}
	for _, path := range []string{"/raft", "/raft/probing", "/raft/stream/msgapp/1", "/raft/stream/message/1",
		"/raft/snapshot", "/members", "/members/hashkv", "/members/promote/1", "/leases", "/leases/internal",
		"/version", "/downgrade/enabled", "/config", "/health", "/metrics", "/livez", "/v2/keys", "/nope", "/"} {
		for _, method := range []string{"GET", "HEAD", "PUT", "DELETE", "get"} {
			// How long that is follows from the moment.
			if method+path != "HEAD/raft/probing" {
				add(method, path, "", "")
			}
		}
	}
	for _, target := range []string{"/raft/", "/raft/stream", "/raft/stream/", "/raft/stream/x/1",
		"/raft/stream/msgapp", "/raft/stream/msgapp/", "/raft/stream/msgapp/xyz", "/members/", "/members/x",
		"/members/promote", "/members/promote/", "/raft?x=1", "/raft/probing/", "/raft/probing/x", "/leases/",
		"/leases/x", "//raft", "/downgrade/enabled?x=1", "/version?x=1"} {
		add("GET", target, "", "")
		add("GET", target, known, "")
	}
	for _, headers := range []string{"", "X-Etcd-Cluster-Id: 1\r\n", "X-Etcd-Cluster-Id: {cluster}\r\n",
		"X-Server-Version: 2.3.0\r\n" + known, "X-Server-Version: 3.0.0\r\n",
		"X-Min-Cluster-Version: 3.8.0\r\n" + known,
		"X-Server-Version: 2.0.0\r\nX-Min-Cluster-Version: 2.0.0\r\n", known, known + "X-Raft-To: 1\r\n",
		known + "X-Raft-To: {member}\r\n"} {
		for _, from := range []string{"msgapp/{cluster}", "message/1", "msgappv2/1", "message/g", "snapshot/1"} {
			add("GET", "/raft/stream/"+from, headers, "")
		}
		add("POST", "/raft", headers, "")
		add("POST", "/raft", headers, "\xff\xff")
		add("GET", "/members", headers, "")
		add("GET", "/members/hashkv", headers, "{}")
	}
	for _, body := range []string{"", "{", `{"revision":1}`, `{"revision":1000}`, `{"revision":-1}`, `{"x":1}`, `[]`} {
		add("GET", "/members/hashkv", known, body)
	}
	for _, id := range []string{"1", "x", "0", "-1", "{member}", "{decimal}", "18446744073709551616"} {
		add("POST", "/members/promote/"+id, "", "")
	}
	return requests
}

// Headers of a member of the cluster.
const known = "X-Etcd-Cluster-Id: {cluster}\r\nX-Server-Version: 3.7.0\r\nX-Min-Cluster-Version: 3.0.0\r\n"

// leaseRequests ask for what the leader knows of leases.
func leaseRequests() (requests []string, err error) {
	for _, lease := range []int64{knownLease, 1, 0, -1} {
		renewal, err := proto.Marshal(&pb.LeaseKeepAliveRequest{ID: lease})
		if err != nil {
			return nil, err
		}
		for _, body := range [][]byte{renewal, append(renewal, 0xff)} {
			requests = append(requests, post("/leases", "", body))
		}
		timeToLive, err := proto.Marshal(&pb.LeaseTimeToLiveRequest{ID: lease, Keys: true})
		if err != nil {
			return nil, err
		}
		// leasepb.LeaseInternalRequest. Without what it wraps, etcd's handler ends by a panic.
		internal := protowire.AppendTag(nil, 1, protowire.BytesType)
		for _, body := range [][]byte{timeToLive, append(timeToLive, 0xff)} {
			requests = append(requests, post("/leases/internal", "", protowire.AppendBytes(internal, body)))
		}
	}
	requests = append(requests, post("/leases", "", nil), post("/leases", "", []byte{0xff}))
	requests = append(requests, post("/leases/internal", "", []byte{0xff}))
	tooLarge := make([]byte, 65<<10)
	requests = append(requests, post("/leases", "", tooLarge), post("/leases/internal", "", tooLarge))
	return requests, nil
}

func post(path, headers string, body []byte) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n%s", path, headers, len(body), body)
}

// postedMessages are messages that raft takes from nobody, and what is addressed to somebody else. etcd ends by a panic
// at some that it takes.
func (o own) postedMessages() (requests []string) {
	// Types of raftpb: MsgHup, MsgBeat, MsgUnreachable, MsgSnapStatus, MsgCheckQuorum, those of storage, and none.
	local := []uint64{0, 1, 10, 11, 12, 19, 20, 21, 22, 30}
	// MsgProp, MsgApp, MsgVote, MsgHeartbeat, MsgTransferLeader.
	others := []uint64{2, 3, 5, 8, 13}
	for _, to := range []uint64{o.member, o.member + 1, 0} {
		kinds := local
		if to != o.member {
			kinds = append(kinds, others...)
		}
		for _, kind := range kinds {
			for _, from := range []uint64{o.member, 7, 0} {
				var message []byte
				for number, value := range []uint64{kind, to, from} {
					message = protowire.AppendTag(message, protowire.Number(number+1), protowire.VarintType)
					message = protowire.AppendVarint(message, value)
				}
				requests = append(requests, post("/raft", o.fill(known), message))
			}
		}
	}
	return requests
}

// comparePeers compares what both answer on their peer ports.
func comparePeers(servers [2]*server) error {
	var all [2][]string
	var owns [2]own
	for side, s := range servers {
		err := raise(s, pb.AlarmType_NONE)
		if err != nil {
			return err
		}
		if owns[side], err = ownOf(s); err != nil {
			return err
		}
		leases, err := leaseRequests()
		if err != nil {
			return err
		}
		for _, request := range append(peerRequests(), leases...) {
			all[side] = append(all[side], owns[side].fill(request))
		}
		all[side] = append(all[side], owns[side].postedMessages()...)
	}
	var different error
	for at := range all[etcd] {
		var answers [2]string
		for side, s := range servers {
			answer, err := askPeer(s, all[side][at])
			if err != nil {
				return fmt.Errorf("%s, %.200q: %w", sideNames[side], all[side][at], err)
			}
			answers[side] = owns[side].mask(answer)
		}
		if answers[etcd] != answers[orlop] {
			shown := fmt.Errorf("%.300q\n--- etcd\n%q\n--- orlop\n%q", all[etcd][at], answers[etcd], answers[orlop])
			different = errors.Join(different, shown)
		}
	}
	return different
}

// askPeer sends a request alone, and returns the answer as it comes: behind a first request, etcd's peer port is slow
// to see another one.
func askPeer(s *server, request string) (string, error) {
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.peer, "http://"))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(callTimeout)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, request); err != nil {
		return "", err
	}
	var answer strings.Builder
	method, _, _ := strings.Cut(request, " ")
	reader := bufio.NewReader(io.TeeReader(conn, &answer))
	response, err := http.ReadResponse(reader, &http.Request{Method: method})
	if err != nil {
		return "", err
	}
	for piece := make([]byte, 4096); err == nil && !strings.Contains(answer.String(), brokenOff); {
		_, err = response.Body.Read(piece)
	}
	if err == io.EOF {
		err = nil
	}
	text := dateLine.ReplaceAllString(answer.String(), "Date: GMT")
	if strings.Contains(text, brokenOff) {
		return response.Status + "\n" + brokenOff, nil
	}
	return text, err
}

func ownOf(s *server) (own, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	grant := &pb.LeaseGrantRequest{ID: knownLease, TTL: 1000}
	granted, err := pb.NewLeaseClient(s.conn).LeaseGrant(ctx, grant)
	if err != nil {
		return own{}, err
	}
	h := granted.Header
	return own{cluster: h.ClusterId, member: h.MemberId, peer: s.peer, client: s.url()}, nil
}
