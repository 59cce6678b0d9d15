package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// compareMembership plays the script to a cluster of each program that is named, and compares what they said, line by
// line. With one program it prints that.
func compareMembership(ctx context.Context, opt options) error {
	var scripts [][]string
	for _, binary := range []string{opt.etcd, opt.orlop} {
		if binary == "" {
			continue
		}
		lines, err := playMembership(ctx, binary, opt, opt.etcd == "" || opt.orlop == "")
		if err != nil {
			return fmt.Errorf("%s: %w", binary, err)
		}
		scripts = append(scripts, lines)
	}
	switch len(scripts) {
	case 0:
		return errors.New("-membership needs -etcd, -orlop or both")
	case 1:
		return nil
	}
	differences := 0
	// The script says the same number of lines, whatever is answered, unless it ends early.
	for i := range min(len(scripts[0]), len(scripts[1])) {
		if scripts[0][i] != scripts[1][i] {
			differences++
			fmt.Printf("etcd:  %s\nOrlop: %s\n", scripts[0][i], scripts[1][i])
		}
	}
	if len(scripts[0]) != len(scripts[1]) {
		return fmt.Errorf("%d lines from etcd, %d from Orlop", len(scripts[0]), len(scripts[1]))
	}
	fmt.Printf("%d passed, %d failed\n", len(scripts[0])-differences, differences)
	if differences > 0 {
		return fmt.Errorf("%d of %d answers differ", differences, len(scripts[0]))
	}
	return nil
}

// site is a cluster whose members change. What is said has names in place of ids and addresses.
type site struct {
	members map[string]*member
	token   string
	ports   []string
	// Of members and of former ones.
	ids   map[uint64]string
	lines []string
	// Something did not come to pass on which the rest builds.
	isLost    bool
	isPrinted bool
}

// The script has three members from the beginning and others that come later.
var (
	firstNames = []string{"m1", "m2", "m3"}
	laterNames = []string{"m4", "m5", "m6"}
)

func playMembership(ctx context.Context, binary string, opt options, isPrinted bool) ([]string, error) {
	dir, err := os.MkdirTemp(opt.dataDir, "clusters-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	s := &site{
		members: map[string]*member{}, token: filepath.Base(dir), ids: map[uint64]string{}, isPrinted: isPrinted,
	}
	defer func() {
		for _, m := range s.members {
			m.discard()
		}
	}()
	// Two ports for other members: an update changes one for the other.
	if s.ports, err = freePorts(ownSubnet()+"1", 3*(len(firstNames)+len(laterNames))); err != nil {
		return nil, err
	}
	for i, name := range slices.Concat(firstNames, laterNames) {
		url := func(which int) string { return "http://" + s.ports[3*i+which] }
		if s.members[name], err = newMember(name, binary, dir, url(0), url(1), url(1)); err != nil {
			return nil, err
		}
		s.members[name].flags = []string{
			"--name", name, "--data-dir", s.members[name].data(), "--initial-cluster-token", s.token,
			"--listen-client-urls", url(0), "--advertise-client-urls", url(0),
			"--listen-peer-urls", url(1) + "," + url(2), "--initial-advertise-peer-urls", url(1),
		}
	}
	for _, name := range firstNames {
		if err := s.start(name, "new", firstNames...); err != nil {
			return nil, err
		}
	}
	for _, name := range firstNames {
		if err := s.members[name].answers(ctx); err != nil {
			return nil, fmt.Errorf("%w\n%s", err, s.members[name].logTail())
		}
	}
	list, err := pb.NewClusterClient(s.conn("m1")).MemberList(ctx, &pb.MemberListRequest{})
	if err != nil {
		return nil, err
	}
	for _, m := range list.Members {
		s.ids[m.ID] = m.Name
	}
	script(ctx, s)
	return s.lines, ctx.Err()
}

func (s *site) start(name, state string, initial ...string) error {
	var cluster []string
	for _, each := range initial {
		cluster = append(cluster, each+"="+s.members[each].advertisedURL)
	}
	m := s.members[name]
	bare := m.flags
	m.flags = append(slices.Clone(bare),
		"--initial-cluster", strings.Join(cluster, ","), "--initial-cluster-state", state)
	err := m.start()
	m.flags = bare
	return err
}

func (s *site) conn(name string) *grpc.ClientConn { return s.members[name].client.ActiveConnection() }

func (s *site) id(name string) uint64 {
	for id, is := range s.ids {
		if is == name {
			return id
		}
	}
	return 1
}

// say notes a line, with names for what differs from run to run.
func (s *site) say(format string, arguments ...any) {
	line := fmt.Sprintf(format, arguments...)
	for id, name := range s.ids {
		line = strings.ReplaceAll(line, strconv.FormatUint(id, 16), "<"+name+">")
		line = strings.ReplaceAll(line, strconv.FormatUint(id, 10), "<"+name+">")
	}
	for i, port := range s.ports {
		name, use := slices.Concat(firstNames, laterNames)[i/3], []string{"client", "peer", "second peer"}[i%3]
		line = strings.ReplaceAll(line, port, fmt.Sprintf("<%s %s>", name, use))
	}
	s.lines = append(s.lines, line)
	if s.isPrinted {
		fmt.Println(line)
	}
}

func told(err error) string {
	if err == nil {
		return "ok"
	}
	// Client and server have the same deadline, and whoever sees it first decides on code and text.
	message := status.Convert(err).Message()
	if status.Code(err) == codes.DeadlineExceeded || strings.Contains(message, "leader transfer took too long") {
		return "its time ran out"
	}
	return fmt.Sprintf("%v %q", status.Code(err), message)
}

// settled repeats a call whose answer depends on how long links have been up, or how far a learner has come.
func settled(ctx context.Context, call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var last error
	poll(ctx, func(context.Context) error {
		each, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		last = call(each)
		message := status.Convert(last).Message()
		if strings.Contains(message, "unhealthy cluster") || strings.Contains(message, "in sync with leader") {
			return last
		}
		return nil
	})
	return last
}

func (s *site) header(header *pb.ResponseHeader) string {
	if header == nil {
		return "no header"
	}
	return fmt.Sprintf("by %s at revision %d", s.name(header.MemberId), header.Revision)
}

func (s *site) name(id uint64) string {
	if name, isKnown := s.ids[id]; isKnown {
		return name
	}
	return fmt.Sprintf("an unknown id (0: %v)", id == 0)
}

// show lists members by name: the order of ids is drawn by ports.
func (s *site) show(members []*pb.Member) string {
	isSorted := slices.IsSortedFunc(members, func(one, other *pb.Member) int {
		if one.ID < other.ID {
			return -1
		}
		return 1
	})
	var all []string
	for _, m := range members {
		all = append(all, fmt.Sprintf("%s named %q at %v for clients %v, learner %v",
			s.name(m.ID), m.Name, m.PeerURLs, m.ClientURLs, m.IsLearner))
	}
	slices.Sort(all)
	return fmt.Sprintf("%d members by id %v: %s", len(members), isSorted, strings.Join(all, "; "))
}

func (s *site) list(ctx context.Context, at string, isLinearizable bool) {
	call, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	answer, err := pb.NewClusterClient(s.conn(at)).MemberList(call, &pb.MemberListRequest{Linearizable: isLinearizable})
	if err != nil {
		s.say("list at %s, linearizable %v: %s", at, isLinearizable, told(err))
		return
	}
	s.say("list at %s, linearizable %v: %s, %s", at, isLinearizable, s.header(answer.Header), s.show(answer.Members))
}

// add adds a member with these URLs, and says whether it is there; the name is for the new id alone.
func (s *site) add(ctx context.Context, at, name string, isLearner bool, urls ...string) bool {
	var answer *pb.MemberAddResponse
	request := &pb.MemberAddRequest{PeerURLs: urls, IsLearner: isLearner}
	err := settled(ctx, func(ctx context.Context) (err error) {
		answer, err = pb.NewClusterClient(s.conn(at)).MemberAdd(ctx, request)
		return err
	})
	s.added(ctx, fmt.Sprintf("add at %s, learner %v, %q", at, isLearner, urls), name, answer, err)
	return err == nil
}

func (s *site) added(ctx context.Context, what, name string, answer *pb.MemberAddResponse, err error) {
	if err != nil {
		s.say("%s: %s", what, told(err))
		return
	}
	_, isKnown := s.ids[answer.Member.ID]
	for id, is := range s.ids {
		if is == name {
			s.ids[id] = "former " + name
		}
	}
	s.ids[answer.Member.ID] = name
	s.say("%s: an id that was there %v, %s, %s; %s", what, isKnown, s.header(answer.Header),
		s.show([]*pb.Member{answer.Member}), s.show(answer.Members))
	s.isKnown(ctx, answer.Members)
}

// isKnown waits until every member that runs has the change, and a write has gone through behind it. Raft drops a
// change that comes while the leader has not applied the one before, and its caller waits in vain.
func (s *site) isKnown(ctx context.Context, members []*pb.Member) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	wanted := s.show(members)
	err := poll(ctx, func(ctx context.Context) error {
		for _, m := range members {
			name := s.ids[m.ID]
			if m.Name == "" || m.IsLearner || s.members[name] == nil || s.members[name].pid() == 0 {
				continue
			}
			answer, err := pb.NewClusterClient(s.conn(name)).MemberList(ctx, &pb.MemberListRequest{})
			if err != nil {
				return err
			}
			if got := s.show(answer.Members); got != wanted {
				return fmt.Errorf("%s lists %s", name, got)
			}
			if _, err := pb.NewKVClient(s.conn(name)).Put(ctx, &pb.PutRequest{Key: []byte("known")}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		s.say("in vain: every member knows of %s: %v", wanted, err)
	}
}

func (s *site) remove(ctx context.Context, at string, id uint64) {
	var answer *pb.MemberRemoveResponse
	err := settled(ctx, func(ctx context.Context) (err error) {
		answer, err = pb.NewClusterClient(s.conn(at)).MemberRemove(ctx, &pb.MemberRemoveRequest{ID: id})
		return err
	})
	if err != nil {
		s.say("remove %d at %s: %s", id, at, told(err))
		return
	}
	s.say("remove %d at %s: %s, %s", id, at, s.header(answer.Header), s.show(answer.Members))
	s.isKnown(ctx, answer.Members)
}

func (s *site) update(ctx context.Context, at string, id uint64, urls ...string) {
	var answer *pb.MemberUpdateResponse
	err := settled(ctx, func(ctx context.Context) (err error) {
		answer, err = pb.NewClusterClient(s.conn(at)).MemberUpdate(ctx, &pb.MemberUpdateRequest{ID: id, PeerURLs: urls})
		return err
	})
	if err != nil {
		s.say("update %d at %s to %q: %s", id, at, urls, told(err))
		return
	}
	s.say("update %d at %s to %q: %s, %s", id, at, urls, s.header(answer.Header), s.show(answer.Members))
	s.isKnown(ctx, answer.Members)
}

func (s *site) promote(ctx context.Context, at string, id uint64) {
	var answer *pb.MemberPromoteResponse
	err := settled(ctx, func(ctx context.Context) (err error) {
		answer, err = pb.NewClusterClient(s.conn(at)).MemberPromote(ctx, &pb.MemberPromoteRequest{ID: id})
		return err
	})
	s.promoted(ctx, at, id, answer, err)
}

func (s *site) promoted(ctx context.Context, at string, id uint64, answer *pb.MemberPromoteResponse, err error) {
	if err != nil {
		s.say("promote %d at %s: %s", id, at, told(err))
		return
	}
	s.say("promote %d at %s: %s, %s", id, at, s.header(answer.Header), s.show(answer.Members))
	s.isKnown(ctx, answer.Members)
}

// promoteOnce does not wait until the learner has come far enough.
func (s *site) promoteOnce(ctx context.Context, at string, id uint64) {
	call, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	answer, err := pb.NewClusterClient(s.conn(at)).MemberPromote(call, &pb.MemberPromoteRequest{ID: id})
	s.promoted(ctx, at, id, answer, err)
}

func (s *site) leader(ctx context.Context) string {
	found := ""
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	poll(ctx, func(ctx context.Context) error {
		for name, m := range s.members {
			if m.pid() == 0 {
				continue
			}
			call, cancel := context.WithTimeout(ctx, time.Second)
			answer, err := pb.NewMaintenanceClient(s.conn(name)).Status(call, &pb.StatusRequest{})
			cancel()
			if err == nil && answer.Leader == answer.Header.MemberId {
				found = name
				return nil
			}
		}
		return errors.New("no member leads")
	})
	return found
}

// lead makes this member the leader.
func (s *site) lead(ctx context.Context, name string) {
	from := s.leader(ctx)
	if from == name || from == "" {
		return
	}
	if err := s.transfer(ctx, from, s.id(name)); err != nil {
		s.say("%s does not become the leader: %s", name, told(err))
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := poll(ctx, func(ctx context.Context) error {
		if now := s.leader(ctx); now != name {
			return fmt.Errorf("%q leads", now)
		}
		return nil
	})
	if err != nil {
		s.say("%s does not lead", name)
	}
}

func (s *site) transfer(ctx context.Context, from string, to uint64) error {
	call, cancel := context.WithTimeout(ctx, 8*time.Second)
	defer cancel()
	_, err := pb.NewMaintenanceClient(s.conn(from)).MoveLeader(call, &pb.MoveLeaderRequest{TargetID: to})
	return err
}

func (s *site) moveLeader(ctx context.Context, at string, to uint64) {
	s.say("move the leader to %d, asked at %s: %s", to, at, told(s.transfer(ctx, at, to)))
}

func (s *site) downgrade(ctx context.Context, at string, action pb.DowngradeRequest_DowngradeAction, version string) {
	request := &pb.DowngradeRequest{Action: action, Version: version}
	answer, err := pb.NewMaintenanceClient(s.conn(at)).Downgrade(ctx, request)
	s.say("downgrade %v %q at %s: %s", action, version, at, told(err))
	if action == pb.DowngradeRequest_VALIDATE {
		s.say("the version is %q", answer.GetVersion())
	}
}

// hasVersion returns when the files of a member are of this version, as the cluster is then.
func (s *site) hasVersion(ctx context.Context, at, version string) error {
	return poll(ctx, func(ctx context.Context) error {
		status, err := pb.NewMaintenanceClient(s.conn(at)).Status(ctx, &pb.StatusRequest{})
		if err == nil && status.StorageVersion != version {
			err = fmt.Errorf("it has %q", status.StorageVersion)
		}
		return err
	})
}

// waits says when something did not come to pass within our patience.
func (s *site) waits(ctx context.Context, what string, try func(context.Context) error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := poll(ctx, try); err != nil {
		s.say("in vain: %s: %s", what, told(errors.Unwrap(err)))
		s.isLost = true
		return
	}
	s.say("%s", what)
}

// reaches puts a key at one member and waits until another has it by itself.
func (s *site) reaches(ctx context.Context, from, to string) {
	value := fmt.Sprint(len(s.lines))
	s.waits(ctx, fmt.Sprintf("a put at %s reaches %s", from, to), func(ctx context.Context) error {
		put := &pb.PutRequest{Key: []byte("reaches"), Value: []byte(value)}
		if _, err := pb.NewKVClient(s.conn(from)).Put(ctx, put); err != nil {
			return err
		}
		return poll(ctx, func(ctx context.Context) error {
			read := &pb.RangeRequest{Key: []byte("reaches"), Serializable: true}
			answer, err := pb.NewKVClient(s.conn(to)).Range(ctx, read)
			if err == nil && (len(answer.Kvs) != 1 || string(answer.Kvs[0].Value) != value) {
				err = errors.New("not yet")
			}
			return err
		})
	})
}

// ends waits until a member's process ends by itself, and says how.
func (s *site) ends(ctx context.Context, what, name string) {
	if s.endsSomehow(ctx, what, name); !s.isLost {
		s.say("its status is %d", s.members[name].child.ProcessState.ExitCode())
	}
}

func (s *site) endsSomehow(ctx context.Context, what, name string) {
	select {
	case <-s.members[name].exited:
		s.say("%s ends by itself, %s", name, what)
	case <-time.After(patience):
		s.say("%s does not end, %s", name, what)
		s.isLost = true
	case <-ctx.Done():
	}
}

// forgets stops a member and takes its data, so that it comes back as a new one.
func (s *site) forgets(name string) {
	m := s.members[name]
	m.end(syscall.SIGKILL)
	os.RemoveAll(m.data())
}

func (s *site) must(err error) {
	if err != nil {
		s.say("the script cannot go on as meant: %v", err)
		s.isLost = true
	}
}
