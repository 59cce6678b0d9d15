package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"time"
)

// scenario is one kind of trouble, with traffic before, meanwhile and behind it.
type scenario struct {
	name string
	// Flags of the members, for stock etcd and for Orlop.
	etcdFlags, orlopFlags []string
	isForOrlop            bool
	run                   func(context.Context, *trouble) error
	// Prepares what the directories stand on.
	prepare func(*trouble) error
}

// trouble is what a scenario has at hand.
type trouble struct {
	*cluster
	// The scenario's.
	name    string
	traffic *traffic
	random  *rand.Rand
	// How often a long form does what a short one does once.
	rounds int
	// What undoes the preparation.
	undo []func()
	// What is judged when all else was.
	afterwards []func() error
	// Clients that have filled so far; each has a number of its own.
	fillers int
}

var scenarios = []scenario{
	{name: "kill/member", run: killMember},
	{name: "kill/leader", run: killLeader},
	{name: "kill/majority", run: killMajority},
	{name: "kill/all", run: killAll},
	{name: "stop/leader", run: stopLeader},
	{name: "stop/follower", run: stopFollower},
	{name: "partition/leader", run: partitionLeader},
	{name: "partition/follower", run: partitionFollower},
	{name: "partition/one-way", run: partitionOneWay},
	{name: "partition/flapping", run: partitionFlapping},
	{name: "partition/delay", run: partitionDelay},
	{name: "hasleader", run: hasLeader},
	{name: "full/follower", run: fullFollower, prepare: prepareFull, orlopFlags: smallLog},
	{name: "full/leader", run: fullLeader, prepare: prepareFull, orlopFlags: smallLog},
	{name: "damage", run: damage, orlopFlags: smallLog, isForOrlop: true},
	{
		name: "behind", run: behind,
		etcdFlags:  append([]string{"--snapshot-count", "100"}, shortLog...),
		orlopFlags: slices.Concat(shortLog, []string{"--consensus-catchup-log-bytes", "0"}, smallLog),
	},
}

// While everything is well, between faults.
const calm = time.Second

func (t *trouble) any() int { return t.random.IntN(t.size()) }

// follower is one that does not lead.
func (t *trouble) follower(ctx context.Context) (int, error) {
	leader, err := t.leader(ctx)
	return (leader + 1 + t.random.IntN(t.size()-1)) % t.size(), err
}

// between is a time of the seed's choice.
func (t *trouble) between(least, most time.Duration) time.Duration {
	return least + time.Duration(t.random.Int64N(int64(most-least)))
}

func (t *trouble) say(format string, arguments ...any) {
	fmt.Printf("  %6.2f s  %-18s  %s\n", t.traffic.recorder.now().Seconds(), t.name, fmt.Sprintf(format, arguments...))
}

// killed kills some members at once and starts them again, after a time, in any order.
func (t *trouble) killed(ctx context.Context, which ...int) error {
	for _, i := range which {
		t.say("SIGKILL of %s", t.members[i].name)
		if err := t.end(i, syscall.SIGKILL); err != nil {
			return err
		}
	}
	pause(ctx, t.between(200*time.Millisecond, 2500*time.Millisecond))
	t.random.Shuffle(len(which), func(one, other int) { which[one], which[other] = which[other], which[one] })
	for _, i := range which {
		t.say("start of %s", t.members[i].name)
		if err := t.start(i); err != nil {
			return err
		}
	}
	if err := t.allAnswer(ctx); err != nil {
		return err
	}
	pause(ctx, calm)
	return nil
}

func killMember(ctx context.Context, t *trouble) error {
	for range t.rounds {
		if err := t.killed(ctx, t.any()); err != nil {
			return err
		}
	}
	return nil
}

func killLeader(ctx context.Context, t *trouble) error {
	for range t.rounds {
		leader, err := t.leader(ctx)
		if err != nil {
			return err
		}
		if err := t.killed(ctx, leader); err != nil {
			return err
		}
	}
	return nil
}

func killMajority(ctx context.Context, t *trouble) error {
	for range t.rounds {
		if err := t.killed(ctx, t.random.Perm(t.size())[:t.size()/2+1]...); err != nil {
			return err
		}
	}
	return nil
}

func killAll(ctx context.Context, t *trouble) error {
	for range t.rounds {
		if err := t.killed(ctx, t.random.Perm(t.size())...); err != nil {
			return err
		}
	}
	return nil
}

// paused stops a member's process for a time. It knows nothing of it when it goes on.
func (t *trouble) paused(ctx context.Context, i int, time time.Duration) error {
	t.say("SIGSTOP of %s for %v", t.members[i].name, time)
	if err := t.members[i].signal(syscall.SIGSTOP); err != nil {
		return err
	}
	pause(ctx, time)
	t.say("SIGCONT")
	if err := t.members[i].signal(syscall.SIGCONT); err != nil {
		return err
	}
	if err := t.allAnswer(ctx); err != nil {
		return err
	}
	pause(ctx, calm)
	return nil
}

func stopLeader(ctx context.Context, t *trouble) error {
	for range t.rounds {
		leader, err := t.leader(ctx)
		if err != nil {
			return err
		}
		if err := t.paused(ctx, leader, 3*time.Second); err != nil {
			return err
		}
	}
	return nil
}

func stopFollower(ctx context.Context, t *trouble) error {
	for range t.rounds {
		follower, err := t.follower(ctx)
		if err != nil {
			return err
		}
		if err := t.paused(ctx, follower, 10*time.Second); err != nil {
			return err
		}
	}
	return nil
}

func silence(f *fault) { f.isSilent = true }
func refuse(f *fault)  { f.isRefused = true }

// apart cuts a member off for a time, loudly or silently. What a silent link held back arrives late in the end, or it
// is lost with its connections.
func (t *trouble) apart(ctx context.Context, i int, cut func(other int, how func(*fault))) error {
	how, name := silence, "silently"
	if t.random.IntN(2) == 0 {
		how, name = refuse, "with resets"
	}
	time := t.between(time.Second, 4*time.Second)
	met := t.network.met.Load()
	t.say("%s is cut off %s for %v", t.members[i].name, name, time.Round(1e6))
	for other := range t.size() {
		if other != i {
			cut(other, how)
		}
	}
	pause(ctx, time)
	if err := t.wasMet(met); err != nil {
		return err
	}
	if t.random.IntN(2) == 0 {
		t.say("its connections are reset")
		for other := range t.size() {
			if other != i {
				t.network.reset(i, other)
			}
		}
	}
	t.say("healed")
	t.network.heal()
	if err := t.allAnswer(ctx); err != nil {
		return err
	}
	pause(ctx, calm)
	return nil
}

// wasMet is an error if no fault has met anything since: members that are well say something every 100 ms.
func (t *trouble) wasMet(before int64) error {
	if t.network.met.Load() == before {
		return errors.New("the fault met no connection: the proxies are not in the way")
	}
	return nil
}

func partitionLeader(ctx context.Context, t *trouble) error {
	for range t.rounds {
		leader, err := t.leader(ctx)
		if err != nil {
			return err
		}
		err = t.apart(ctx, leader, func(other int, how func(*fault)) { t.network.both(leader, other, how) })
		if err != nil {
			return err
		}
	}
	return nil
}

func partitionFollower(ctx context.Context, t *trouble) error {
	for range t.rounds {
		follower, err := t.follower(ctx)
		if err != nil {
			return err
		}
		err = t.apart(ctx, follower, func(other int, how func(*fault)) { t.network.both(follower, other, how) })
		if err != nil {
			return err
		}
	}
	return nil
}

// partitionOneWay cuts what a member sends, or what it receives.
func partitionOneWay(ctx context.Context, t *trouble) error {
	for range t.rounds {
		who := t.any()
		if leader, err := t.leader(ctx); err != nil {
			return err
		} else if t.random.IntN(2) == 0 {
			who = leader
		}
		isDeaf := t.random.IntN(2) == 0
		t.say("one way: %s does not hear: %v", t.members[who].name, isDeaf)
		err := t.apart(ctx, who, func(other int, how func(*fault)) {
			if isDeaf {
				t.network.set(other, who, how)
			} else {
				t.network.set(who, other, how)
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// partitionFlapping cuts and heals single links, each way by itself.
func partitionFlapping(ctx context.Context, t *trouble) error {
	met := t.network.met.Load()
	for range 40 * t.rounds {
		from := t.any()
		to := (from + 1 + t.random.IntN(t.size()-1)) % t.size()
		switch t.random.IntN(6) {
		case 0:
			t.network.set(from, to, refuse)
		case 1:
			t.network.set(from, to, silence)
		case 2:
			t.network.both(from, to, silence)
		case 3:
			t.network.reset(from, to)
		default:
			t.network.both(from, to, func(f *fault) { *f = fault{} })
		}
		pause(ctx, t.between(10*time.Millisecond, 400*time.Millisecond))
	}
	t.say("healed behind %d changes", 40*t.rounds)
	t.network.heal()
	return t.wasMet(met)
}

// partitionDelay makes every link late by 50 ms each way; then one direction of one much more than the others.
func partitionDelay(ctx context.Context, t *trouble) error {
	for range t.rounds {
		met := t.network.met.Load()
		for from := range t.size() {
			for to := range t.size() {
				t.network.set(from, to, func(f *fault) { f.delay = 50 * time.Millisecond })
			}
		}
		t.say("50 ms on every link")
		pause(ctx, 4*time.Second)
		from := t.any()
		to := (from + 1 + t.random.IntN(t.size()-1)) % t.size()
		t.say("300 ms from %s to %s", t.members[from].name, t.members[to].name)
		t.network.set(from, to, func(f *fault) { f.delay = 300 * time.Millisecond })
		pause(ctx, 3*time.Second)
		if err := t.wasMet(met); err != nil {
			return err
		}
		t.network.heal()
		pause(ctx, calm)
	}
	return nil
}
