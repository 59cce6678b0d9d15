package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"syscall"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"
)

// run is one sequence on one pair of servers.
type run struct {
	*generator
	options
	servers    [2]*cluster
	watches    watchSet
	keepAlives [2]grpc.BidiStreamingClient[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse]
	step       int
	refused    int
	// The last compaction's removal may still be going on.
	isCompacting bool
	// How many seconds the remaining times of leases may differ by.
	ttlTolerance int64
	// Revisions at which the servers have compacted since their last start.
	remembered map[int64]bool
	// Revisions at which a transaction may have deleted a key, by an open-ended delete, and put it again. etcd's index
	// knows only the tombstone there. A compaction at such a revision removes the live record, and etcd dies when it
	// reads the key. HashKV at such a revision does not count the key.
	reborn map[int64]bool
}

func runSeed(opt options, seed uint64) (report string, err error) {
	r := &run{
		generator:  &generator{Rand: rand.New(rand.NewPCG(seed, 0)), current: 1, compacted: -1, many: opt.keys},
		options:    opt,
		remembered: map[int64]bool{},
		reborn:     map[int64]bool{},
	}
	binaries := [2][2]string{{opt.etcd, opt.etcdFlags}, {opt.orlop, opt.orlopFlags}}
	for side := range r.servers {
		binary, flags := binaries[side][0], binaries[side][1]
		r.servers[side], err = newCluster(sideNames[side], binary, flags, opt.dataDir, opt.tls, opt.members)
		if err != nil {
			return "", err
		}
		defer r.servers[side].discard()
	}
	if err := r.startBoth(); err != nil {
		return "", err
	}
	if err := errors.Join(checkDoor(r.servers[etcd].server), checkDoor(r.servers[orlop].server)); err != nil {
		return "", err
	}
	defer func() {
		for _, server := range r.servers {
			if err != nil && server.hasDied() {
				err = fmt.Errorf("%w\n%s has died:\n%s", err, server.name, server.logTail())
			}
		}
	}()
	actions, total := r.actions(), 0.0
	for _, action := range actions {
		total += action.weight
	}
	for r.step = 1; r.step <= opt.requests; r.step++ {
		if opt.restarts > 0 && r.step%(opt.requests/(opt.restarts+1)+1) == 0 {
			err = r.restart()
		} else {
			at := r.Float64() * total
			chosen := 0
			for at >= actions[chosen].weight && chosen+1 < len(actions) {
				at -= actions[chosen].weight
				chosen++
			}
			err = actions[chosen].act()
		}
		if err == nil && r.step%1000 == 0 {
			err = errors.Join(r.watches.drain(r.current), r.hashes())
		}
		if err != nil {
			return "", fmt.Errorf("step %d: %w", r.step, err)
		}
	}
	if err := errors.Join(r.watches.drain(r.current), r.hashes()); err != nil {
		return "", fmt.Errorf("at the end: %w", err)
	}
	return fmt.Sprintf("%d requests (%d refused), %d revisions, %d events watched",
		opt.requests, r.refused, r.current, r.watches.delivered), nil
}

type action struct {
	weight float64
	act    func() error
}

func (r *run) actions() []action {
	alarms, bulks := 0.0, 0.0
	if r.alarms {
		alarms = 0.3
	}
	if r.many > 0 {
		bulks = 3
	}
	kv, lease, maintenance := "/etcdserverpb.KV/", "/etcdserverpb.Lease/", "/etcdserverpb.Maintenance/"
	return []action{
		{27, func() error { return r.call(kv+"Put", r.put(), &pb.PutResponse{}) }},
		{0.3, func() error { return r.call(kv+"Put", r.oversizePut(), &pb.PutResponse{}) }},
		{22, func() error { return r.call(kv+"Range", r.rangeRequest(), &pb.RangeResponse{}) }},
		{6, r.stream},
		{16, func() error { return r.call(kv+"Txn", r.txn(2), &pb.TxnResponse{}) }},
		{4, func() error { return r.call(kv+"Txn", r.readOnlyTxn(), &pb.TxnResponse{}) }},
		{0.2, func() error { return r.call(kv+"Txn", r.longTxn(), &pb.TxnResponse{}) }},
		{7, func() error { return r.call(kv+"DeleteRange", r.deleteRange(), &pb.DeleteRangeResponse{}) }},
		{0.8, r.compact},
		{3, func() error { return r.call(lease+"LeaseGrant", r.grant(), &pb.LeaseGrantResponse{}) }},
		{0.5, r.grantAndRevoke},
		{0.02, r.expire},
		{1.2, func() error {
			return r.call(lease+"LeaseRevoke", &pb.LeaseRevokeRequest{ID: r.leaseID()}, &pb.LeaseRevokeResponse{})
		}},
		{2, func() error {
			request := &pb.LeaseTimeToLiveRequest{ID: r.leaseID(), Keys: r.percent(70)}
			return r.call(lease+"LeaseTimeToLive", request, &pb.LeaseTimeToLiveResponse{})
		}},
		{1, func() error { return r.call(lease+"LeaseLeases", &pb.LeaseLeasesRequest{}, &pb.LeaseLeasesResponse{}) }},
		{2, r.keepAlive},
		{1.5, r.hashKV},
		{0.3, func() error { return r.call(maintenance+"Status", &pb.StatusRequest{}, &pb.StatusResponse{}) }},
		{0.2, func() error { return r.call(maintenance+"Alarm", &pb.AlarmRequest{}, &pb.AlarmResponse{}) }},
		{0.05, func() error {
			return r.call(maintenance+"Defragment", &pb.DefragmentRequest{}, &pb.DefragmentResponse{})
		}},
		{alarms, r.alarm},
		{bulks, func() error { return r.call(kv+"Txn", r.bulk(), &pb.TxnResponse{}) }},
		{0.3, func() error {
			request := &pb.MemberListRequest{Linearizable: r.percent(50)}
			return r.call("/etcdserverpb.Cluster/MemberList", request, &pb.MemberListResponse{})
		}},
		{0.2, r.health},
		{0.1, r.unknownMethod},
		{3, r.watchCreate},
		{1, r.watchCancel},
		{0.7, r.watchProgress},
		{0.1, r.watchNothing},
		{0.2, r.watchClose},
	}
}

// call sends one unary request to both servers and compares.
func (r *run) call(method string, request, response proto.Message) error {
	_, err := r.callEach(method, [2]proto.Message{request, request}, response)
	return err
}

// callEach is call with a request for each server. The two may differ in ids that the servers chose.
func (r *run) callEach(method string, requests [2]proto.Message, response proto.Message) ([2]outcome, error) {
	leader := r.percent(5)
	var outcomes [2]outcome
	onBoth(func(side int) {
		answer := response.ProtoReflect().New().Interface()
		outcomes[side] = invoke(r.servers[side].conn, method, requests[side], answer, leader)
	})
	return outcomes, r.judge(method, requests[etcd], outcomes)
}

func (r *run) judge(method string, request proto.Message, outcomes [2]outcome) error {
	if r.verbose {
		fmt.Printf("step %d: %s { %v } -> %v\n", r.step, method, request, outcomes[etcd])
	}
	if outcomes[etcd].code != codes.OK {
		r.refused++
	} else if answer, ok := outcomes[etcd].response.(interface{ GetHeader() *pb.ResponseHeader }); ok {
		r.current = max(r.current, answer.GetHeader().GetRevision())
		if txn, ok := request.(*pb.TxnRequest); ok && hasOpenDelete(txn) {
			r.reborn[answer.GetHeader().GetRevision()] = true
		}
	}
	return judge(method, request, [2]int{r.servers[etcd].port, r.servers[orlop].port}, r.ttlTolerance, outcomes)
}

func (r *run) stream() error {
	request := r.rangeRequest()
	if request.SortOrder == pb.RangeRequest_NONE && request.SortTarget != pb.RangeRequest_KEY {
		// etcd sorts each piece by itself and goes on behind the last key of the sorted piece. So keys are lost or come
		// twice.
		request.SortTarget = pb.RangeRequest_KEY
	}
	var outcomes [2]outcome
	onBoth(func(side int) {
		outcomes[side] = rangeStream(r.servers[side].conn, proto.Clone(request).(*pb.RangeRequest))
	})
	return r.judge("/etcdserverpb.KV/RangeStream", request, outcomes)
}

func (r *run) compact() error {
	// The compaction could take events that a watcher has yet to get, on one server and not on the other.
	if err := r.watches.drain(r.current); err != nil {
		return err
	}
	request := r.compaction()
	if r.reborn[request.Revision] {
		return nil
	}
	requests := [2]proto.Message{request, request}
	outcomes, err := r.callEach("/etcdserverpb.KV/Compact", requests, &pb.CompactionResponse{})
	if outcomes[etcd].code == codes.OK {
		r.compacted = max(r.compacted, request.Revision)
		r.isCompacting = !request.Physical
		r.remembered[request.Revision] = true
	}
	return err
}

func (r *run) hashKV() error {
	request := &pb.HashKVRequest{Revision: r.revision()}
	if r.percent(30) {
		request.Revision = 0
	}
	return r.hashAt(request)
}

// hashAt compares the hashes of a revision, unless etcd's answer is known to be off. When etcd compacts at a revision,
// it keeps the hash as of the compaction before. It answers that hash until it stops. A restarted etcd answers
// otherwise.
func (r *run) hashAt(request *pb.HashKVRequest) error {
	revision := request.Revision
	if revision == 0 {
		revision = r.current
	}
	if r.remembered[request.Revision] || r.reborn[revision] {
		return nil
	}
	return r.call("/etcdserverpb.Maintenance/HashKV", request, &pb.HashKVResponse{})
}

// hashes compares the whole history that is left.
func (r *run) hashes() error {
	for _, revision := range []int64{0, max(r.compacted, 1), r.pastRevision(), r.pastRevision(), r.current} {
		if err := r.hashAt(&pb.HashKVRequest{Revision: revision}); err != nil {
			return err
		}
	}
	if err := errors.Join(r.servers[etcd].agree(r.current), r.servers[orlop].agree(r.current)); err != nil {
		return err
	}
	everything := &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}
	return r.call("/etcdserverpb.KV/Range", everything, &pb.RangeResponse{})
}

// grantAndRevoke makes a lease and revokes it at once. So the servers may choose its id, and its time may be short.
func (r *run) grantAndRevoke() error {
	request := &pb.LeaseGrantRequest{TTL: pick[int64](r.generator, -1<<63, -1, 0, 1, 2, 3, 60)}
	if r.percent(50) {
		request.ID = 1000 + r.Int64N(1000)
	}
	var granted [2]outcome
	method := "/etcdserverpb.Lease/LeaseGrant"
	onBoth(func(side int) {
		granted[side] = invoke(r.servers[side].conn, method, request, &pb.LeaseGrantResponse{}, false)
	})
	var revokes [2]proto.Message
	for side := range granted {
		answer, ok := granted[side].response.(*pb.LeaseGrantResponse)
		if !ok {
			return r.judge(method, request, granted)
		}
		revokes[side] = &pb.LeaseRevokeRequest{ID: answer.ID}
		if request.ID == 0 && answer.ID <= 0 {
			return &difference{
				method: method, request: request, reason: "a chosen id must be positive",
				sides: [2]string{granted[etcd].String(), granted[orlop].String()},
			}
		}
		if request.ID == 0 {
			answer.ID = 1
		}
	}
	if err := r.judge(method, request, granted); err != nil {
		return err
	}
	_, err := r.callEach("/etcdserverpb.Lease/LeaseRevoke", revokes, &pb.LeaseRevokeResponse{})
	return err
}

// expire lets a lease with keys run out on both servers. The keys must go in one revision, and the lease with them.
func (r *run) expire() error {
	id := 2000 + r.Int64N(1<<40)
	grant := &pb.LeaseGrantRequest{ID: id, TTL: 1}
	if err := r.call("/etcdserverpb.Lease/LeaseGrant", grant, &pb.LeaseGrantResponse{}); err != nil {
		return err
	}
	for range 1 + r.IntN(5) {
		request := &pb.PutRequest{Key: pick(r.generator, keys...), Lease: id}
		if err := r.call("/etcdserverpb.KV/Put", request, &pb.PutResponse{}); err != nil {
			return err
		}
	}
	deadline := time.Now().Add(callTimeout)
	for side, server := range r.servers {
		for {
			outcome := invoke(server.conn, "/etcdserverpb.Lease/LeaseTimeToLive", &pb.LeaseTimeToLiveRequest{ID: id},
				&pb.LeaseTimeToLiveResponse{}, false)
			if left, ok := outcome.response.(*pb.LeaseTimeToLiveResponse); ok && left.TTL == -1 {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("%s: lease %d of 2 s does not expire: %v", sideNames[side], id, outcome)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	everything := &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}
	if err := r.call("/etcdserverpb.KV/Range", everything, &pb.RangeResponse{}); err != nil {
		return err
	}
	return r.watches.drain(r.current)
}

func (r *run) keepAlive() error {
	request := &pb.LeaseKeepAliveRequest{ID: r.leaseID()}
	var outcomes [2]outcome
	onBoth(func(side int) {
		ended := make(chan outcome, 1)
		go func() {
			if err := r.keepAlives[side].Send(request); err != nil {
				ended <- failed(err)
			} else if response, err := r.keepAlives[side].Recv(); err != nil {
				ended <- failed(err)
			} else {
				ended <- outcome{response: response}
			}
		}()
		select {
		case outcomes[side] = <-ended:
		case <-time.After(callTimeout):
			outcomes[side] = outcome{code: codes.DeadlineExceeded, text: "no answer on the keep-alive stream"}
		}
	})
	return r.judge("/etcdserverpb.Lease/LeaseKeepAlive", request, outcomes)
}

func (r *run) alarm() error {
	method := "/etcdserverpb.Maintenance/Alarm"
	raise := &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_NOSPACE}
	clear := &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, Alarm: pb.AlarmType_NOSPACE}
	return errors.Join(
		r.call(method, raise, &pb.AlarmResponse{}),
		r.call(method, &pb.AlarmRequest{}, &pb.AlarmResponse{}),
		r.call("/etcdserverpb.KV/Put", r.put(), &pb.PutResponse{}),
		r.call("/etcdserverpb.KV/Txn", r.txn(1), &pb.TxnResponse{}),
		r.call("/etcdserverpb.KV/DeleteRange", r.deleteRange(), &pb.DeleteRangeResponse{}),
		r.call("/etcdserverpb.Lease/LeaseGrant", r.grant(), &pb.LeaseGrantResponse{}),
		r.call(method, clear, &pb.AlarmResponse{}),
		r.call(method, clear, &pb.AlarmResponse{}),
	)
}

func (r *run) health() error {
	service := "/grpc.health.v1.Health/"
	if r.percent(20) {
		return r.call(service+"List", &healthpb.HealthListRequest{}, &healthpb.HealthListResponse{})
	}
	request := &healthpb.HealthCheckRequest{Service: pick(r.generator, "", "etcdserverpb.KV", "nothing")}
	return r.call(service+"Check", request, &healthpb.HealthCheckResponse{})
}

func (r *run) unknownMethod() error {
	method := pick(
		r.generator,
		"/etcdserverpb.KV/Nothing",
		"/nothing.Nothing/Range",
		"/grpc.reflection.v1.ServerReflection/Nothing",
	)
	return r.call(method, &pb.RangeRequest{Key: []byte("a")}, &pb.RangeResponse{})
}

func (r *run) startBoth() error {
	var errs [2]error
	var took [2]time.Duration
	onBoth(func(side int) {
		began := time.Now()
		errs[side] = r.servers[side].start()
		took[side] = time.Since(began)
	})
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	if r.verbose {
		fmt.Printf("step %d: started in %v\n", r.step, took)
	}
	r.ttlTolerance = ttlTolerance + int64((took[etcd] - took[orlop]).Abs().Seconds())
	for side, server := range r.servers {
		stream, err := openKeepAlive(server.server)
		if err != nil {
			return err
		}
		r.keepAlives[side] = stream
	}
	return r.watches.open([2]*server{r.servers[etcd].server, r.servers[orlop].server})
}

// restart ends both servers, gently or not, and starts them on what they left behind.
func (r *run) restart() error {
	if err := errors.Join(r.watches.drain(r.current), r.watches.closeAll()); err != nil {
		return err
	}
	signal := pick(r.generator, syscall.SIGTERM, syscall.SIGKILL)
	if r.verbose {
		fmt.Fprintf(os.Stdout, "step %d: restart by %v\n", r.step, signal)
	}
	var errs [2]error
	onBoth(func(side int) { errs[side] = r.servers[side].stop(signal) })
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	if err := r.startBoth(); err != nil {
		return err
	}
	clear(r.remembered)
	return r.hashes()
}
