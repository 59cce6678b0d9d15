// Clusters runs three members of one server binary behind a network that it can make fail, with clients at all of them,
// and judges what the clients saw.
//
//	clusters -server bin/etcd|target/release/orlop [-run kill,stop/leader] [-seed S] [-long]
//	clusters -server target/release/orlop -others 1 -etcd bin/etcd [-run ..]
//	clusters -replace -server target/release/orlop -etcd bin/etcd [-of 3] [-rate 1000]
//	clusters -replace-in-place -server target/release/orlop -etcd bin/etcd
//	clusters -learner 3m -server target/release/orlop -etcd bin/etcd [-rate 1000]
//	clusters -membership -etcd bin/etcd [-orlop target/release/orlop]
//	clusters -failover -etcd bin/etcd -orlop target/release/orlop [-times 20]
//	clusters -figures -etcd bin/etcd -orlop target/release/orlop -bench target/release/bench [-run cpu,join]
//
// A scenario is chosen by its name, or by what stands before the slash. Each has a cluster of its own, prints its seed,
// and ends with the same checks: every acknowledged write is there, the history is linearizable, watches were told
// everything in order and once, no lease ended early, and all members agree and are healthy. The seed fixes what is
// asked and which faults come; what meets what also depends on the machine. No check depends on speed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

type options struct {
	server, etcd, orlop string
	flags               string
	dataDir             string
	run                 string
	seed                uint64
	isLong, keep        bool
	beside              int
	// How many members there are, and how many of them are those of etcd.
	size, others int
	// Of replacements.
	of, rate  int
	isInPlace bool
	// How long a learner stands beside.
	learner time.Duration
	// Of figures.
	bench   string
	pause   time.Duration
	joinMiB int
}

func main() {
	var opt options
	flag.StringVar(&opt.server, "server", "", "the server of the scenarios, stock etcd or Orlop")
	flag.StringVar(&opt.flags, "flags", "", "more flags for it, separated by spaces")
	flag.StringVar(&opt.dataDir, "data", os.TempDir(), "where data directories are made")
	flag.StringVar(&opt.run, "run", "", "names of scenarios or figures, separated by commas; without it, all")
	flag.Uint64Var(&opt.seed, "seed", 0, "0 draws one for each scenario")
	flag.BoolVar(&opt.isLong, "long", false, "each scenario's faults ten times")
	flag.IntVar(&opt.beside, "beside", 1, "how many scenarios happen at once")
	flag.IntVar(&opt.size, "size", 3, "so many members")
	flag.IntVar(&opt.others, "others", 0, "so many of the members are -etcd")
	flag.BoolVar(&opt.keep, "keep", false, "keep the data and logs of scenarios that fail")
	flag.StringVar(&opt.etcd, "etcd", "", "stock etcd, for -membership, -failover and -figures, and for -others")
	flag.StringVar(&opt.orlop, "orlop", "", "Orlop, for -membership, -failover and -figures")
	flag.IntVar(&opt.of, "of", 3, "so many members are replaced by -replace")
	flag.IntVar(&opt.rate, "rate", 1000, "requests a second for -replace, beside the traffic of all scenarios")
	isReplaced := flag.Bool("replace", false,
		"instead: replace the members of -etcd by those of -server one by one under load, and go back")
	flag.BoolVar(&opt.isInPlace, "replace-in-place", false,
		"as -replace, but Orlop goes on with the directories and addresses of all stock members")
	flag.DurationVar(&opt.learner, "learner", 0,
		"instead: for so long, a learner of -server stands beside members of -etcd under load")
	membership := flag.Bool("membership", false, "instead: one script of membership calls on both; compare all answers")
	failover := flag.Bool("failover", false,
		"instead: measure how long nobody can write when the leader is killed or stopped")
	times := flag.Int("times", 20, "how often -failover does each")
	isFigures := flag.Bool("figures", false, "instead: measure CPU, memory and delays of both, one after the other")
	corruption := flag.Bool("corruption", false, "instead: have a member of -etcd hold something else than -server's")
	flag.StringVar(&opt.bench, "bench", "", "Orlop's load generator, for -figures")
	flag.DurationVar(&opt.pause, "pause", 5*time.Minute, "how long the figure \"paused\" loads a leader")
	flag.IntVar(&opt.joinMiB, "join-mib", 1024, "the values, in MiB, that the figure \"join\" has a member receive")
	flag.Parse()

	// Whatever ends the run, members end with it, and mounts go.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	switch {
	case flag.NArg() > 0:
		err = errors.New("arguments without a flag")
	case opt.isInPlace && opt.of != opt.size:
		err = errors.New("-replace-in-place replaces all members")
	case (*isReplaced || opt.isInPlace) && (opt.server == "" || opt.etcd == "" || opt.of < 1 || opt.of > opt.size):
		err = errors.New("-replace needs -server, -etcd, and some -of the members")
	case *isReplaced || opt.isInPlace:
		err = withSeed(ctx, opt, "replace", replaceMembers)
	case opt.learner > 0 && (opt.server == "" || opt.etcd == ""):
		err = errors.New("-learner needs -server and -etcd")
	case opt.learner > 0:
		err = withSeed(ctx, opt, "learner", standBeside)
	case *membership:
		err = compareMembership(ctx, opt)
	case *failover:
		err = measureFailover(ctx, opt, *times)
	case *corruption:
		err = checkCorruption(ctx, opt)
	case *isFigures && opt.bench == "":
		err = errors.New("-bench is missing")
	case *isFigures:
		err = measureFigures(ctx, opt)
	case opt.size < 3 || opt.others < 0 || opt.others > opt.size || opt.others > 0 && opt.etcd == "":
		err = errors.New("-size is three or more, and -others is a number of members and needs -etcd")
	case opt.server == "":
		err = errors.New("-server is missing")
	default:
		err = runScenarios(ctx, opt)
	}
	if err != nil {
		fmt.Println("FAIL", err)
		os.Exit(1)
	}
}

func runScenarios(ctx context.Context, opt options) error {
	var passed, failed, skipped atomic.Int32
	var running sync.WaitGroup
	places := make(chan struct{}, max(1, opt.beside))
	for _, s := range scenarios {
		if !isChosen(s.name, opt.run) {
			continue
		}
		places <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		running.Go(func() {
			defer func() { <-places }()
			switch err := s.playAndTell(ctx, opt); {
			case errors.Is(err, errSkipped):
				skipped.Add(1)
			case err != nil:
				failed.Add(1)
			default:
				passed.Add(1)
			}
		})
	}
	running.Wait()
	if passed.Load()+failed.Load()+skipped.Load() == 0 {
		return fmt.Errorf("no scenario has the name %q", opt.run)
	}
	fmt.Printf("%d passed, %d failed\n", passed.Load(), failed.Load())
	if failed.Load() > 0 {
		return fmt.Errorf("%d scenarios", failed.Load())
	}
	return ctx.Err()
}

func (s *scenario) playAndTell(ctx context.Context, opt options) error {
	seed := opt.seed
	if seed == 0 {
		seed = rand.Uint64()
	}
	fmt.Printf("%s, seed %d\n", s.name, seed)
	began := time.Now()
	report, err := s.play(ctx, opt, seed)
	took := time.Since(began).Seconds()
	switch {
	case errors.Is(err, errSkipped):
		fmt.Printf("%s: %v\n", s.name, err)
	case err != nil:
		fmt.Printf("FAIL %s (clusters -run %s -seed %d), %.0f s: %v\n", s.name, s.name, seed, took, err)
	default:
		fmt.Printf("ok %s: %s, %.0f s\n", s.name, report, took)
	}
	return err
}

func isChosen(name, run string) bool {
	if run == "" {
		return true
	}
	for _, each := range strings.Split(run, ",") {
		if name == each || strings.HasPrefix(name, each+"/") {
			return true
		}
	}
	return false
}

// play makes a cluster, has the scenario happen under traffic, and judges.
func (s *scenario) play(ctx context.Context, opt options, seed uint64) (string, error) {
	dir, err := os.MkdirTemp(opt.dataDir, "clusters-")
	if err != nil {
		return "", err
	}
	isFailed := true
	defer func() {
		if opt.keep && isFailed {
			fmt.Println("kept:", dir)
		} else {
			os.RemoveAll(dir)
		}
	}()
	binaries := alike(opt.server, opt.size)
	for i := range opt.others {
		binaries[opt.size-1-i] = opt.etcd
	}
	c, err := newCluster(binaries, dir)
	if err != nil {
		return "", err
	}
	trouble := &trouble{name: s.name, cluster: c, random: rand.New(rand.NewPCG(seed, 0)), rounds: 1}
	defer func() {
		c.discard()
		for _, undo := range trouble.undo {
			undo()
		}
	}()
	if s.isForOrlop && slices.ContainsFunc(c.members, func(m *member) bool { return !m.isOrlop }) {
		return "", fmt.Errorf("%w: stock etcd does not repair itself", errSkipped)
	}
	if opt.isLong {
		trouble.rounds = 10
	}
	c.addFlags(s.etcdFlags, s.orlopFlags, strings.Fields(opt.flags))
	if s.prepare != nil {
		if err := s.prepare(trouble); err != nil {
			return "", err
		}
	}
	if err := c.startAll(ctx); err != nil {
		return "", err
	}
	r := newRecorder()
	trouble.traffic = startTraffic(ctx, c, r, seed)
	defer trouble.traffic.stop()
	pause(ctx, calm)
	if err = s.run(ctx, trouble); err == nil {
		_, err = finish(ctx, c, trouble.traffic)
	}
	for _, each := range trouble.afterwards {
		if err == nil {
			err = each()
		}
	}
	if err != nil {
		return "", fmt.Errorf("%w\n%s", err, c.logTails())
	}
	isFailed = false
	return r.report(), nil
}
