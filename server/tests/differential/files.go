package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

// filePrograms are stock etcd's tools.
type filePrograms struct{ etcdctl, etcdutl string }

// journey is one random history, with the servers and files that come of it.
type journey struct {
	options
	filePrograms
	*generator
	servers []*server
	dir     string
}

// runFiles carries data between the two servers in every way there is, and compares what arrives with what was sent.
func runFiles(opt options, programs filePrograms, seed uint64) error {
	dir, err := os.MkdirTemp(opt.dataDir, "differential-files-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, step := range []struct {
		name string
		act  func(*journey) error
	}{
		{"Orlop's snapshot file, restored by both", (*journey).fromOrlop},
		{"etcd's snapshot file, restored by Orlop", (*journey).fromEtcd},
		{"an etcd that was killed, imported", (*journey).imported},
	} {
		// Without compactions, with some, and compacted to the last revision.
		for variant := range 3 {
			j := &journey{options: opt, filePrograms: programs, dir: dir}
			j.generator = &generator{
				Rand:      rand.New(rand.NewPCG(seed, uint64(variant))),
				current:   1,
				compacted: -1,
				many:      500 * variant,
			}
			err := step.act(j)
			for _, server := range j.servers {
				if err != nil && server.hasDied() {
					err = fmt.Errorf("%w\n%s has died:\n%s", err, server.name, server.logTail())
				}
				server.discard()
			}
			if err != nil {
				return fmt.Errorf("%s (%d): %w", step.name, variant, err)
			}
			fmt.Printf("%s: equal at revision %d, compacted at %d\n", step.name, j.current, j.compacted)
		}
	}
	return nil
}

func (j *journey) server(side int) (*server, error) {
	binary, flags := j.etcd, j.etcdFlags
	if side == orlop {
		binary, flags = j.orlop, j.orlopFlags
	}
	server, err := newServer(sideNames[side], binary, flags, j.dir, credentials{})
	if err == nil {
		j.servers = append(j.servers, server)
	}
	return server, err
}

// history fills a server.
func (j *journey) history(s *server) error {
	kv, lease := "/etcdserverpb.KV/", "/etcdserverpb.Lease/"
	for step := range 2500 {
		var method string
		var request, response proto.Message
		switch chance := j.IntN(100); {
		case chance < 55:
			method, request, response = kv+"Put", j.put(), &pb.PutResponse{}
		case chance < 70:
			txn := j.txn(2)
			if hasOpenDelete(txn) {
				continue // etcd forgets a key that such a transaction deletes and puts again
			}
			method, request, response = kv+"Txn", txn, &pb.TxnResponse{}
		case chance < 75 && j.many > 0:
			method, request, response = kv+"Txn", j.bulk(), &pb.TxnResponse{}
		case chance < 90:
			deletion := j.deleteRange()
			if j.percent(90) {
				deletion.RangeEnd = nil
			}
			method, request, response = kv+"DeleteRange", deletion, &pb.DeleteRangeResponse{}
		case chance < 97:
			method, request, response = lease+"LeaseGrant", j.grant(), &pb.LeaseGrantResponse{}
		case chance < 98:
			revoke := &pb.LeaseRevokeRequest{ID: j.leaseID()}
			method, request, response = lease+"LeaseRevoke", revoke, &pb.LeaseRevokeResponse{}
		case j.many > 0:
			method, request, response = kv+"Compact", j.compaction(), &pb.CompactionResponse{}
		default:
			continue
		}
		if j.many == 1000 && step == 2499 {
			compaction := &pb.CompactionRequest{Revision: j.current, Physical: true}
			method, request, response = kv+"Compact", compaction, &pb.CompactionResponse{}
		}
		outcome := invoke(s.conn, method, request, response, false)
		if outcome.code == codes.Unavailable || outcome.code == codes.DeadlineExceeded {
			return fmt.Errorf("%s: %v", method, outcome)
		}
		if outcome.code != codes.OK {
			continue
		}
		if compaction, ok := request.(*pb.CompactionRequest); ok {
			j.compacted = compaction.Revision
		}
		answer := outcome.response.(interface{ GetHeader() *pb.ResponseHeader })
		j.current = max(j.current, answer.GetHeader().GetRevision())
	}
	raise := &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_NOSPACE, MemberID: alarmed}
	answer := invoke(s.conn, "/etcdserverpb.Maintenance/Alarm", raise, &pb.AlarmResponse{}, false)
	if answer.code != codes.OK {
		return fmt.Errorf("raising an alarm: %v", answer)
	}
	return nil
}

// alarmed is the id of a member whose alarm a client raises.
const alarmed = 77

func run1(name string, arguments ...string) (string, error) {
	command := exec.Command(name, arguments...)
	var output, errors strings.Builder
	command.Stdout, command.Stderr = &output, &errors
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s%s",
			filepath.Base(name), strings.Join(arguments, " "), err, output.String(), errors.String())
	}
	return output.String(), nil
}

// save takes a snapshot file of a server. Both tools must report the same of it.
func (j *journey) save(s *server) (string, error) {
	file := filepath.Join(s.dir, "snapshot.db")
	if _, err := run1(j.etcdctl, "--endpoints", s.url(), "snapshot", "save", file); err != nil {
		return "", err
	}
	for _, format := range []string{"simple", "json", "fields", "table"} {
		theirs, err := run1(j.etcdutl, "snapshot", "status", file, "-w", format)
		if err != nil {
			return "", err
		}
		ours, err := run1(j.orlop, "snapshot", "status", file, "-w", format)
		if err != nil {
			return "", err
		}
		if ours != theirs {
			return "", fmt.Errorf("snapshot status -w %s: etcdutl says\n%sOrlop says\n%s", format, theirs, ours)
		}
	}
	return file, nil
}

// restore starts a server on what its own tool makes of a snapshot file.
func (j *journey) restore(side int, file string, flags ...string) (*server, error) {
	s, err := j.server(side)
	if err != nil {
		return nil, err
	}
	tool := j.etcdutl
	if side == orlop {
		tool = j.orlop
	}
	arguments := append([]string{"snapshot", "restore", file, "--name", "m1", "--data-dir", s.data(),
		"--initial-cluster", "m1=" + s.peer, "--initial-advertise-peer-urls", s.peer}, flags...)
	if _, err := run1(tool, arguments...); err != nil {
		return nil, err
	}
	return s, s.start()
}

func (j *journey) fromOrlop() error {
	origin, err := j.server(orlop)
	if err != nil {
		return err
	}
	if err := errors.Join(origin.start(), j.history(origin)); err != nil {
		return err
	}
	return j.restored(origin)
}

func (j *journey) fromEtcd() error {
	origin, err := j.server(etcd)
	if err != nil {
		return err
	}
	if err := errors.Join(origin.start(), j.history(origin)); err != nil {
		return err
	}
	// Until it is started again etcd answers the hashes it took while compacting.
	if err := errors.Join(origin.stop(syscall.SIGTERM), origin.start()); err != nil {
		return err
	}
	return j.restored(origin)
}

func (j *journey) restored(origin *server) error {
	file, err := j.save(origin)
	if err != nil {
		return err
	}
	was, err := j.content(origin)
	if err != nil {
		return err
	}
	for _, side := range []int{etcd, orlop} {
		s, err := j.restore(side, file)
		if err != nil {
			return err
		}
		if err := j.equals(was, s); err != nil {
			return fmt.Errorf("restored by %s: %w", sideNames[side], err)
		}
		// And it goes on from there.
		if err := j.goesOn(s); err != nil {
			return fmt.Errorf("restored by %s: %w", sideNames[side], err)
		}
	}
	return j.bumped(file)
}

// bumped restores with a gap in the revisions. Both tools must come to the same result.
func (j *journey) bumped(file string) error {
	current, compacted := j.current, j.compacted
	defer func() { j.current, j.compacted = current, compacted }()
	j.current += 1000
	j.compacted = j.current
	var contents [2]*content
	var servers [2]*server
	for _, side := range []int{etcd, orlop} {
		s, err := j.restore(side, file, "--bump-revision", "1000", "--mark-compacted")
		if err != nil {
			return err
		}
		servers[side] = s
		if side == etcd {
			// It compacts as it starts, and answers the hash it took then until it is started again.
			if err := errors.Join(s.stop(syscall.SIGTERM), s.start()); err != nil {
				return err
			}
		}
		if contents[side], err = j.content(s); err != nil {
			return fmt.Errorf("%s, bumped: %w", sideNames[side], err)
		}
	}
	if err := contents[etcd].compare(contents[orlop]); err != nil {
		return fmt.Errorf("bumped: %w", err)
	}
	// A restart and another snapshot must keep the record of the gap.
	if err := servers[orlop].stop(syscall.SIGKILL); err != nil {
		return err
	}
	if err := servers[orlop].start(); err != nil {
		return err
	}
	if err := j.equals(contents[etcd], servers[orlop]); err != nil {
		return fmt.Errorf("bumped, after a restart: %w", err)
	}
	again, err := j.save(servers[orlop])
	if err != nil {
		return err
	}
	s, err := j.restore(etcd, again)
	if err != nil {
		return err
	}
	if err := j.equals(contents[etcd], s); err != nil {
		return fmt.Errorf("bumped, and back to etcd: %w", err)
	}
	return nil
}

func (j *journey) goesOn(s *server) error {
	disarm := &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, Alarm: pb.AlarmType_NOSPACE, MemberID: alarmed}
	answer := invoke(s.conn, "/etcdserverpb.Maintenance/Alarm", disarm, &pb.AlarmResponse{}, false)
	if answer.code != codes.OK {
		return fmt.Errorf("taking back the alarm: %v", answer)
	}
	answer = invoke(s.conn, "/etcdserverpb.KV/Put", &pb.PutRequest{Key: []byte("on")}, &pb.PutResponse{}, false)
	put, ok := answer.response.(*pb.PutResponse)
	if !ok || put.Header.Revision != j.current+1 {
		return fmt.Errorf("the next put after revision %d: %v", j.current, answer)
	}
	return nil
}

// imported lets Orlop take over what a killed etcd left, and compares that with what etcd itself makes of a copy.
func (j *journey) imported() error {
	origin, err := j.server(etcd)
	if err != nil {
		return err
	}
	if err := errors.Join(origin.start(), j.history(origin)); err != nil {
		return err
	}
	// On ports of its own: those of the running one would be refused first.
	port := "http://127.0.0.1:0"
	own := []string{"--import", "--listen-client-urls", port, "--listen-peer-urls", port}
	inUse, _ := exec.Command(j.orlop, append(slices.Clone(origin.flags), own...)...).CombinedOutput()
	if !strings.Contains(string(inUse), "in use by another process") {
		return fmt.Errorf("import of a running etcd: %s", inUse)
	}
	if err := origin.stop(syscall.SIGKILL); err != nil {
		return err
	}
	kept := filepath.Join(origin.dir, "copy")
	if _, err := run1("cp", "-a", origin.data(), kept); err != nil {
		return err
	}
	// What etcd itself makes of the data. It answers the hashes it took while compacting until it is started again, so
	// it starts twice.
	if err := errors.Join(origin.start(), origin.stop(syscall.SIGTERM), origin.start()); err != nil {
		return err
	}
	was, err := j.content(origin)
	if err != nil {
		return err
	}
	err = errors.Join(origin.stop(syscall.SIGKILL), os.RemoveAll(origin.data()), os.Rename(kept, origin.data()))
	if err != nil {
		return err
	}
	// The same member, but another program.
	origin.name, origin.binary = sideNames[orlop], j.orlop
	if err := origin.start(); err == nil || !strings.Contains(err.Error(), "--import") {
		return fmt.Errorf("etcd's data without --import: %v", err)
	}
	flags := origin.flags
	origin.flags = append(slices.Clone(flags), "--import")
	if err := origin.start(); err != nil {
		return err
	}
	if err := j.equals(was, origin); err != nil {
		return fmt.Errorf("imported: %w", err)
	}
	if err := j.goesOn(origin); err != nil {
		return err
	}
	// One import is enough. After it the flag may stay or go.
	if err := errors.Join(origin.stop(syscall.SIGKILL), origin.start(), origin.stop(syscall.SIGTERM)); err != nil {
		return err
	}
	origin.flags = flags
	if err := origin.start(); err != nil {
		return err
	}
	// Stock etcd must not start on the old data by accident.
	stock := exec.Command(j.etcd, origin.flags...)
	if output, err := stock.CombinedOutput(); err == nil {
		return fmt.Errorf("stock etcd starts on data that was imported:\n%s", output)
	}
	return nil
}

// content is everything that can be asked of a server, for a choice of revisions.
type content struct {
	answers []proto.Message
	names   []string
}

func (j *journey) content(s *server) (*content, error) {
	c := &content{}
	ask := func(method string, request, response proto.Message) error {
		outcome := invoke(s.conn, method, request, response, false)
		if outcome.code != codes.OK {
			return fmt.Errorf("%s { %v }: %v", method, request, outcome)
		}
		if answer, ok := response.(interface{ GetHeader() *pb.ResponseHeader }); ok {
			header := answer.GetHeader()
			header.ClusterId, header.MemberId, header.RaftTerm = 0, 0, 0
		}
		c.names = append(c.names, fmt.Sprintf("%s { %v }", method, request))
		c.answers = append(c.answers, response)
		return nil
	}
	oldest := max(j.compacted, 1)
	random := rand.New(rand.NewPCG(uint64(j.current), 1))
	revisions := []int64{0, oldest, j.current}
	for range 8 {
		revisions = append(revisions, oldest+random.Int64N(j.current-oldest+1))
	}
	for _, revision := range revisions {
		everything := &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Revision: revision}
		hash := &pb.HashKVRequest{Revision: revision}
		err := errors.Join(
			ask("/etcdserverpb.Maintenance/HashKV", hash, &pb.HashKVResponse{}),
			ask("/etcdserverpb.KV/Range", everything, &pb.RangeResponse{}),
		)
		if err != nil {
			return nil, err
		}
	}
	leases := &pb.LeaseLeasesResponse{}
	if err := ask("/etcdserverpb.Lease/LeaseLeases", &pb.LeaseLeasesRequest{}, leases); err != nil {
		return nil, err
	}
	slices.SortFunc(leases.Leases, func(a, b *pb.LeaseStatus) int { return cmp.Compare(a.ID, b.ID) })
	for _, lease := range leases.Leases {
		request, left := &pb.LeaseTimeToLiveRequest{ID: lease.ID, Keys: true}, &pb.LeaseTimeToLiveResponse{}
		if err := ask("/etcdserverpb.Lease/LeaseTimeToLive", request, left); err != nil {
			return nil, err
		}
		left.TTL = 0
		slices.SortFunc(left.Keys, slices.Compare)
	}
	if err := ask("/etcdserverpb.Maintenance/Alarm", &pb.AlarmRequest{}, &pb.AlarmResponse{}); err != nil {
		return nil, err
	}
	members := &pb.MemberListResponse{}
	if err := ask("/etcdserverpb.Cluster/MemberList", &pb.MemberListRequest{}, members); err != nil {
		return nil, err
	}
	for _, member := range members.Members {
		if member.ID == 0 || len(member.PeerURLs) != 1 || len(member.ClientURLs) != 1 {
			return nil, fmt.Errorf("a member is not whole: %v", member)
		}
		// A restored member is another member, with its own ports.
		member.ID, member.PeerURLs, member.ClientURLs = 0, nil, nil
	}
	return c, nil
}

func (c *content) compare(other *content) error {
	if len(c.answers) != len(other.answers) {
		return fmt.Errorf("%d answers and %d", len(c.answers), len(other.answers))
	}
	for at, answer := range c.answers {
		if !proto.Equal(answer, other.answers[at]) {
			return fmt.Errorf("%s:\n%.2000v\nand\n%.2000v", c.names[at], answer, other.answers[at])
		}
	}
	return nil
}

func (j *journey) equals(was *content, s *server) error {
	is, err := j.content(s)
	if err != nil {
		return err
	}
	if err := was.compare(is); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	_, err = pb.NewMaintenanceClient(s.conn).Status(ctx, &pb.StatusRequest{})
	return err
}
