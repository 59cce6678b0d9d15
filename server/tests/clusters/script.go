package main

import (
	"context"
	"fmt"
	"syscall"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// script is the fixed course of membership calls, good and bad ones.
func script(ctx context.Context, s *site) {
	s.lead(ctx, "m1")
	s.list(ctx, "m1", true)
	s.list(ctx, "m2", false)
	for _, part := range []func(context.Context, *site){
		badArguments, leaders, downgrades, urls, learner, unstarted, removedAndBack, leaderRemoved,
	} {
		if part(ctx, s); s.isLost || ctx.Err() != nil {
			s.say("the script ends here")
			return
		}
	}
}

func badArguments(ctx context.Context, s *site) {
	s.add(ctx, "m1", "m4", false)
	for _, url := range []string{
		"", "nonsense", "127.0.0.1:1", "http://127.0.0.1", "http://127.0.0.1:1/path", "ftp://127.0.0.1:1",
		"http://127.0.0.1:port", "https://", "http://a b:1", "http://127.0.0.1:1/", "http://[::1:1", "http://x:1:2",
	} {
		s.add(ctx, "m2", "m4", false, url)
	}
	// Some that look bad are taken. Members with them are learners, so that nobody waits for them.
	for _, url := range []string{"http://:1", "http://127.0.0.1:1?query", "unix://", "http://user@127.0.0.1:1"} {
		if s.add(ctx, "m2", "odd", true, url) {
			s.remove(ctx, "m1", s.id("odd"))
		}
	}
	s.add(ctx, "m1", "m4", true, "http://127.0.0.1:1", "nonsense")
	s.add(ctx, "m1", "m4", false, s.members["m2"].advertisedURL)
	s.add(ctx, "m3", "m4", true, s.members["m4"].advertisedURL, s.members["m3"].advertisedURL)
	for _, at := range []string{"m1", "m2"} {
		for _, id := range []uint64{0, 1} {
			s.remove(ctx, at, id)
			s.update(ctx, at, id, s.members["m5"].advertisedURL)
			s.promote(ctx, at, id)
		}
		s.promote(ctx, at, s.id("m2"))
	}
	s.update(ctx, "m1", s.id("m3"), s.members["m1"].advertisedURL)
	s.list(ctx, "m3", true)
}

func leaders(ctx context.Context, s *site) {
	s.lead(ctx, "m1")
	s.moveLeader(ctx, "m2", s.id("m2"))
	s.moveLeader(ctx, "m1", 0)
	s.moveLeader(ctx, "m1", 1)
	s.moveLeader(ctx, "m1", s.id("m1"))
	s.moveLeader(ctx, "m1", s.id("m2"))
	s.say("%s leads", s.leader(ctx))
	s.moveLeader(ctx, "m1", s.id("m3"))
	s.lead(ctx, "m1")
}

// downgrades has the cluster's version go down, or not. When the version has followed, nothing says.
func downgrades(ctx context.Context, s *site) {
	for _, at := range []string{"m1", "m2"} {
		for _, version := range []string{
			"", "x", "3", "3.6", "3.6.0", "3.6.1-rc.0", "3.5.0", "3.7.0", "3.8.0", "v3.6.0",
		} {
			s.downgrade(ctx, at, pb.DowngradeRequest_VALIDATE, version)
		}
		s.downgrade(ctx, at, pb.DowngradeRequest_CANCEL, "")
		s.downgrade(ctx, at, 7, "3.6")
		s.downgrade(ctx, at, pb.DowngradeRequest_ENABLE, "3.5")
	}
	s.downgrade(ctx, "m2", pb.DowngradeRequest_ENABLE, "3.6")
	s.waits(ctx, "the version goes down", func(ctx context.Context) error {
		return s.hasVersion(ctx, "m1", "3.6.0")
	})
	s.downgrade(ctx, "m1", pb.DowngradeRequest_ENABLE, "3.6")
	s.downgrade(ctx, "m3", pb.DowngradeRequest_VALIDATE, "3.5")
	s.downgrade(ctx, "m1", pb.DowngradeRequest_CANCEL, "")
	s.waits(ctx, "the version goes up again", func(ctx context.Context) error {
		return s.hasVersion(ctx, "m2", "3.7.0")
	})
}

// urls changes where others dial m3, which listens at both.
func urls(ctx context.Context, s *site) {
	m3 := s.members["m3"]
	second := "http://" + s.ports[8]
	s.update(ctx, "m2", s.id("m3"), m3.advertisedURL)
	s.update(ctx, "m1", s.id("m3"), second)
	s.reaches(ctx, "m1", "m3")
	s.update(ctx, "m3", s.id("m3"), m3.advertisedURL, second)
	s.list(ctx, "m3", true)
	s.update(ctx, "m1", s.id("m3"), m3.advertisedURL)
	s.reaches(ctx, "m3", "m2")
	// Of three voters and a fourth, none may be dead. That stays so, and is not waited for.
	s.whileDead(ctx, "m3", func() {
		call, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		request := &pb.MemberAddRequest{PeerURLs: []string{s.members["m4"].advertisedURL}}
		answer, err := pb.NewClusterClient(s.conn("m1")).MemberAdd(call, request)
		s.added(ctx, "add while m3 is dead", "m4", answer, err)
	})
}

func (s *site) whileDead(ctx context.Context, name string, do func()) {
	s.must(s.members[name].end(syscall.SIGKILL))
	// Until the others know: nothing tells when they do.
	pause(ctx, 2*time.Second)
	do()
	s.must(s.start(name, "existing"))
	s.reaches(ctx, name, "m1")
}

// learner brings m4 in as a learner and makes it a voter.
func learner(ctx context.Context, s *site) {
	s.lead(ctx, "m1")
	s.add(ctx, "m2", "m4", true, s.members["m4"].advertisedURL)
	s.list(ctx, "m3", true)
	s.add(ctx, "m1", "m5", true, s.members["m5"].advertisedURL)
	s.add(ctx, "m1", "m5", false, s.members["m4"].advertisedURL, s.members["m5"].advertisedURL)
	s.promoteOnce(ctx, "m1", s.id("m4"))
	s.promoteOnce(ctx, "m2", s.id("m4"))
	s.moveLeader(ctx, "m1", s.id("m4"))

	// It joins only under the members that there are.
	s.must(s.start("m4", "existing", "m1", "m2", "m4"))
	s.ends(ctx, "told of too few members", "m4")
	s.forgets("m4")
	s.must(s.start("m4", "existing", "m1", "m2", "m3", "m4"))
	if s.reaches(ctx, "m1", "m4"); s.isLost {
		return
	}
	asLearner(ctx, s)
	s.moveLeader(ctx, "m1", s.id("m4"))
	s.promote(ctx, "m2", s.id("m4"))
	s.promote(ctx, "m1", s.id("m4"))
	s.reaches(ctx, "m4", "m1")
	s.list(ctx, "m4", true)
}

// asLearner asks m4 what a learner answers, and what it refuses.
func asLearner(ctx context.Context, s *site) {
	call, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	kv, conn := pb.NewKVClient(s.conn("m4")), s.conn("m4")
	_, err := kv.Range(call, &pb.RangeRequest{Key: []byte("reaches"), Serializable: true})
	s.say("a serializable read at the learner: %s", told(err))
	_, err = kv.Range(call, &pb.RangeRequest{Key: []byte("reaches")})
	s.say("a linearizable read at the learner: %s", told(err))
	_, err = kv.Put(call, &pb.PutRequest{Key: []byte("reaches")})
	s.say("a put at the learner: %s", told(err))
	_, err = kv.Txn(call, &pb.TxnRequest{})
	s.say("a transaction at the learner: %s", told(err))
	_, err = pb.NewLeaseClient(conn).LeaseGrant(call, &pb.LeaseGrantRequest{TTL: 10})
	s.say("a lease at the learner: %s", told(err))
	_, err = pb.NewMaintenanceClient(conn).HashKV(call, &pb.HashKVRequest{})
	s.say("a hash of the learner: %s", told(err))
	_, err = pb.NewMaintenanceClient(conn).Alarm(call, &pb.AlarmRequest{})
	s.say("alarms of the learner: %s", told(err))
	answer, err := pb.NewMaintenanceClient(conn).Status(call, &pb.StatusRequest{})
	s.say("status of the learner: %s, learner %v, its leader is %s", told(err), answer.GetIsLearner(),
		s.name(answer.GetLeader()))
	watch, err := pb.NewWatchClient(conn).Watch(call)
	if err == nil {
		_, err = watch.Recv()
	}
	s.say("a watch at the learner: %s", told(err))
	renewal, err := pb.NewLeaseClient(conn).LeaseKeepAlive(call)
	if err == nil {
		_, err = renewal.Recv()
	}
	s.say("a renewal at the learner: %s", told(err))
	s.list(ctx, "m4", false)
	s.list(ctx, "m4", true)
	s.add(ctx, "m4", "m5", false, s.members["m5"].advertisedURL)
	s.remove(ctx, "m4", s.id("m2"))
	s.promote(ctx, "m4", s.id("m4"))
	s.moveLeader(ctx, "m4", s.id("m2"))
}

// unstarted has members that are added and never come.
func unstarted(ctx context.Context, s *site) {
	s.lead(ctx, "m1")
	// Of four voters and a fifth, one may be dead.
	s.whileDead(ctx, "m4", func() { s.add(ctx, "m1", "m5", false, s.members["m5"].advertisedURL) })
	s.add(ctx, "m1", "m6", false, s.members["m5"].advertisedURL, s.members["m6"].advertisedURL)
	s.update(ctx, "m1", s.id("m5"), s.members["m6"].advertisedURL)
	s.update(ctx, "m1", s.id("m5"), s.members["m5"].advertisedURL)
	s.promoteOnce(ctx, "m1", s.id("m5"))
	s.moveLeader(ctx, "m1", s.id("m5"))
	s.remove(ctx, "m2", s.id("m4"))
	s.ends(ctx, "removed", "m4")
	s.remove(ctx, "m1", s.id("m3"))
	s.ends(ctx, "removed", "m3")
	s.add(ctx, "m1", "m6", false, s.members["m6"].advertisedURL)
	s.remove(ctx, "m1", s.id("m2"))
	s.remove(ctx, "m1", s.id("m4"))
	s.remove(ctx, "m1", s.id("m5"))
	s.list(ctx, "m2", true)
}

// removedAndBack: a removed id never returns, and its URL may, with another id.
func removedAndBack(ctx context.Context, s *site) {
	m3 := s.members["m3"]
	s.must(s.start("m3", "existing"))
	// How it ends depends on what it hears of first.
	s.endsSomehow(ctx, "removed and started again", "m3")
	for _, id := range []uint64{s.id("m3"), s.id("m5")} {
		s.remove(ctx, "m1", id)
		s.update(ctx, "m1", id, m3.advertisedURL)
		s.promote(ctx, "m1", id)
		s.lead(ctx, "m1")
		s.moveLeader(ctx, "m1", id)
	}
	s.forgets("m3")
	s.add(ctx, "m2", "m3", false, m3.advertisedURL)
	s.list(ctx, "m1", true)
	s.must(s.start("m3", "existing", "m1", "m2", "m3"))
	s.reaches(ctx, "m3", "m1")
	s.list(ctx, "m3", true)
}

// leaderRemoved: a leader that is removed goes, and the others go on.
func leaderRemoved(ctx context.Context, s *site) {
	s.lead(ctx, "m1")
	// Asked at another: by itself it may be gone before it answers, in stock etcd as well.
	s.remove(ctx, "m2", s.id("m1"))
	s.ends(ctx, "the leader, removed", "m1")
	s.reaches(ctx, "m2", "m3")
	s.list(ctx, "m2", true)
	s.remove(ctx, "m2", s.id("m1"))
	leader := s.leader(ctx)
	s.say("one of the others leads: %s", fmt.Sprint(leader == "m2" || leader == "m3"))
}
