package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

var (
	dateLine = regexp.MustCompile(`Date: [^\r]* GMT`)
	// etcd runs the checks in random order.
	checkLines = regexp.MustCompile(`(?:\[[+-]\][^\n]*\n)+`)
)

// ask sends a request as it is and returns all that comes until the server closes or falls silent.
func ask(port int, request string) (string, error) {
	conn, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(port))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	// A request with this line is the last one, so nobody has to wait to see the end.
	last := "GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
	if _, err := io.WriteString(conn, request+last); err != nil {
		return "", err
	}
	if err := conn.SetReadDeadline(time.Now().Add(callTimeout)); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(conn)
	// A server that closes before it has read everything resets the connection, after its answer.
	if netError := (*net.OpError)(nil); errors.As(err, &netError) && !netError.Timeout() {
		err = nil
	}
	text := dateLine.ReplaceAllString(string(answer), "Date: GMT")
	return checkLines.ReplaceAllStringFunc(text, func(lines string) string {
		all := strings.SplitAfter(lines, "\n")
		slices.Sort(all)
		return strings.Join(all, "")
	}), err
}

// httpRequests are requests whose answers are the same, byte for byte.
func httpRequests() (requests []string) {
	add := func(method, target, version, headers, body string) {
		requests = append(requests, method+" "+target+" HTTP/"+version+"\r\n"+headers+"\r\n"+body)
	}
	const host = "Host: x\r\n"
	for _, path := range []string{"/health", "/livez", "/readyz", "/version", "/nope", "/livez/serializable_read",
		"/readyz/non_learner", "/readyz/data_corruption", "/livez/linearizable_read", "//health", "/debug/nope"} {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "get"} {
			add(method, path, "1.1", host, "")
		}
	}
	for _, target := range []string{"/", "/health/", "/livez/", "/members", "/livez?verbose", "/readyz?verbose",
		"/livez?verbose=false", "/readyz?verbose&exclude=non_learner", "/readyz?exclude=bogus&verbose",
		"/readyz?exclude=&verbose", "/livez?exclude=serializable_read&verbose", "/livez?exclude=serializable_read",
		"/readyz?exclude=non%5flearner&verbose", "/livez/serializable_read?verbose",
		"/livez/serializable_read?exclude=serializable_read&verbose", "/readyz/data_corruption?verbose",
		"/health?serializable=true", "/health?serializable=false", "/health?exclude=NOSPACE", "/health?exclude=CORRUPT",
		"/health?exclude=NOSPACE&exclude=CORRUPT", "/health?exclude=%zz", "/health?x;exclude=NOSPACE", "/./health",
		"/a/../health?x=1&y=<", "/a//b/", "/a%20b//c", "/he%61lth", "/health%2f", "/health#x", "/%zz",
		"http://x/health", "*", "health"} {
		add("GET", target, "1.1", host, "")
	}
	add("OPTIONS", "*", "1.1", host, "")
	add("GET", "/health", "1.0", "", "")
	add("GET", "/health", "1.0", host+"Connection: keep-alive\r\n", "")
	add("GET", "/health", "1.1", "", "")
	add("GET", "/health", "1.1", host+"Connection: close\r\n", "")
	add("GET", "/health", "1.1", host+"Connection: x, Close\r\n", "")
	add("POST", "/health", "1.1", host+"Content-Length: 5\r\n", "hello")
	add("POST", "/version", "1.1", host+"Content-Length: 5\r\nExpect: 100-continue\r\n", "hello")
	add("GET", "/health", "1.1", host+"Bad Name: x\r\n", "")
	add("GET", "/health", "1.1", host+host, "")
	add("GET", "/health", "1.1", host+"Content-Length: x\r\n", "")
	add("GET", "/health", "1.1", host+"X: "+strings.Repeat("a", 20000)+"\r\n", "")
	add("GET", "/health", "1.1", host+strings.Repeat("X: a\r\n", 100), "")
	add("GET", "/version", "1.1", host+"Origin: http://o\r\n", "")
	return requests
}

// longRequests have answers whose heads are the same.
var longRequests = []string{
	"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
	"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\na",
	"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
	"OPTIONS /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET /metrics HTTP/1.0\r\n\r\n",
	"POST /debug/vars HTTP/1.1\r\nHost: x\r\n\r\n",
}

// runHTTP compares what both servers answer on the client port and on the metrics port, in good health and with alarms,
// and on the peer port.
func runHTTP(opt options) error {
	var servers [2]*server
	var metrics [2]int
	for side, binary := range [2]string{opt.etcd, opt.orlop} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		metrics[side] = listener.Addr().(*net.TCPAddr).Port
		listener.Close()
		flags := [2]string{opt.etcdFlags, opt.orlopFlags}[side]
		flags += " --listen-metrics-urls http://127.0.0.1:" + strconv.Itoa(metrics[side])
		if servers[side], err = newServer(sideNames[side], binary, flags, opt.dataDir, credentials{}); err != nil {
			return err
		}
		defer servers[side].discard()
		if err := errors.Join(servers[side].start(), versionDecided(servers[side])); err != nil {
			return err
		}
	}
	clients := [2]int{servers[etcd].port, servers[orlop].port}
	for _, alarm := range []pb.AlarmType{pb.AlarmType_NONE, pb.AlarmType_NOSPACE, pb.AlarmType_CORRUPT} {
		for _, s := range servers {
			if err := raise(s, alarm); err != nil {
				return err
			}
		}
		for _, ports := range [][2]int{clients, metrics} {
			if err := compareHTTP(ports); err != nil {
				return fmt.Errorf("with alarm %v, metrics port: %v: %w", alarm, ports == metrics, err)
			}
		}
	}
	return comparePeers(servers)
}

func compareHTTP(ports [2]int) error {
	for _, request := range append(httpRequests(), longRequests...) {
		var answers [2]string
		for side, port := range ports {
			answer, err := ask(port, request)
			if err != nil {
				return fmt.Errorf("%s: %w", sideNames[side], err)
			}
			if slices.Contains(longRequests, request) {
				answer, _, _ = strings.Cut(answer, "\r\n\r\n")
			}
			answers[side] = answer
		}
		if answers[etcd] != answers[orlop] {
			return fmt.Errorf("%.200q\n--- etcd\n%q\n--- orlop\n%q", request, answers[etcd], answers[orlop])
		}
	}
	return nil
}

// raise raises the alarm, and only it.
func raise(s *server, alarm pb.AlarmType) error {
	ctx, cancel := callContext(false)
	defer cancel()
	maintenance := pb.NewMaintenanceClient(s.conn)
	for _, known := range []pb.AlarmType{pb.AlarmType_NOSPACE, pb.AlarmType_CORRUPT} {
		action := pb.AlarmRequest_DEACTIVATE
		if known == alarm {
			action = pb.AlarmRequest_ACTIVATE
		}
		request := &pb.AlarmRequest{Alarm: known, Action: action, MemberID: 1}
		if _, err := maintenance.Alarm(ctx, request); err != nil {
			return err
		}
	}
	return nil
}
