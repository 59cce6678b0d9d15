// Differential plays one random sequence of requests to stock etcd and to Orlop and compares every answer whole.
//
//	differential -etcd bin/etcd -orlop target/release/orlop [-requests 20000] [-seed S] [-keys 3000]
//	differential -kill9 5 -orlop target/release/orlop
//	differential -tls DIR -etcd bin/etcd -orlop target/release/orlop [-requests 20000] [-seed S] [-keys 3000]
//	differential -wire -etcd bin/etcd -orlop target/release/orlop
//	differential -http server/src/metrics -etcd bin/etcd -orlop target/release/orlop
//	differential -files -etcd bin/etcd -etcdctl bin/etcdctl -etcdutl bin/etcdutl -orlop target/release/orlop
//
// With -members 3 each side is a cluster of so many members, which must agree with each other, too.
//
// Both servers start empty, with the same flags, on loopback, and with TLS if -tls names certificates. Each gets its
// requests one at a time over one connection; watches run beside them. The comparison covers every field of every
// response, and the code and exact text of every error. It leaves out the values of cluster ids, member ids and raft
// terms, sizes, log positions and ports. It also leaves out the order of equals where etcd's own sort leaves that open.
//
// The sequence depends only on the seed and on etcd's answers, so a seed repeats a run. The seeds in seeds.txt, which
// once found something, run first. The first difference ends the run with status 1. The program prints it with seed,
// step, request and both answers.
package main

import (
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

//go:embed seeds.txt
var keptSeeds string

type options struct {
	etcd, orlop           string
	etcdFlags, orlopFlags string
	dataDir               string
	tls                   credentials
	requests              int
	restarts              int
	keys                  int
	members               int
	alarms                bool
	verbose               bool
}

func main() {
	var opt options
	flag.StringVar(&opt.etcd, "etcd", "", "stock etcd 3.7.1")
	flag.StringVar(&opt.orlop, "orlop", "", "the server under test")
	flag.StringVar(&opt.etcdFlags, "etcd-flags", "", "more flags for etcd, separated by spaces")
	flag.StringVar(&opt.orlopFlags, "orlop-flags", "", "more flags for the server under test, separated by spaces")
	flag.StringVar(&opt.dataDir, "data", os.TempDir(), "where data directories are made")
	flag.IntVar(&opt.requests, "requests", 20000, "requests of a run")
	flag.IntVar(&opt.restarts, "restarts", 3, "how often both servers are killed and started again during a run")
	flag.IntVar(&opt.keys, "keys", 0,
		"keys beside the few that requests mostly meet at; then trees are deep and ranges long")
	flag.IntVar(&opt.members, "members", 1, "members of each cluster; requests go to one of them")
	flag.BoolVar(&opt.alarms, "alarms", false, "raise and clear the NOSPACE alarm, too")
	flag.BoolVar(&opt.verbose, "v", false, "print every request")
	secrets := flag.String("tls", "",
		"speak TLS, and have the servers demand it: this folder holds ca.pem, server.pem, server.key, client.pem "+
			"and client.key; for the requests and -kill9")
	seed := flag.Uint64("seed", 0, "0 draws one")
	workers := flag.Int("workers", 1, "pairs of servers that share the requests; each has a seed of its own")
	kept := flag.Bool("kept", true, "first run the seeds of seeds.txt")
	files := flag.Bool("files", false, "instead: carry one's files to the other and back, and compare what is there")
	wire := flag.Bool("wire", false,
		"instead: send both the same HTTP/2 streams, good and bad ones, and compare what comes back")
	var programs filePrograms
	flag.StringVar(&programs.etcdctl, "etcdctl", "", "stock etcdctl, for -files")
	flag.StringVar(&programs.etcdutl, "etcdutl", "", "stock etcdutl, for -files")
	endpoints := flag.String("http", "",
		"instead: compare the HTTP endpoints, the families of /metrics and the log lines of requests; "+
			"this folder holds the list of etcd's families")
	writeFamilies := flag.Bool("write-families", false, "with -http: write that list anew")
	kill9 := flag.Int("kill9", 0,
		"instead: this many rounds of SIGKILL under load, checking that acknowledged writes survive")
	flag.Parse()

	isPlain := *files || *wire || *endpoints != ""
	if opt.orlop == "" || (opt.etcd == "" && *kill9 == 0) || flag.NArg() > 0 || *workers < 1 || opt.members < 1 ||
		(isPlain && *secrets != "") {
		flag.Usage()
		os.Exit(2)
	}
	var err error
	if opt.tls, err = readCredentials(*secrets); err != nil {
		fmt.Printf("-tls: %v\n", err)
		os.Exit(2)
	}
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	if *kill9 > 0 {
		fmt.Printf("seed %d\n", *seed)
		if err := runKills(opt, *seed, *kill9); err != nil {
			fmt.Printf("FAIL seed %d: %v\n", *seed, err)
			os.Exit(1)
		}
		return
	}
	if *wire {
		if err := runWire(opt); err != nil {
			fmt.Printf("FAIL %v\n", err)
			os.Exit(1)
		}
		return
	}
	if *files {
		fmt.Printf("seed %d\n", *seed)
		if err := runFiles(opt, programs, *seed); err != nil {
			fmt.Printf("FAIL seed %d: %v\n", *seed, err)
			os.Exit(1)
		}
		return
	}
	if *endpoints != "" {
		if err := errors.Join(runFamilies(opt, *endpoints, *writeFamilies), runHTTP(opt), runLines(opt)); err != nil {
			fmt.Printf("FAIL\n%v\n", err)
			os.Exit(1)
		}
		return
	}
	if *kept {
		for _, line := range strings.Split(keptSeeds, "\n") {
			line, _, _ = strings.Cut(line, "#")
			fields := strings.Fields(line)
			if len(fields) == 0 {
				continue
			}
			old := opt
			old.keys = 0
			keptSeed, err := strconv.ParseUint(fields[0], 10, 64)
			if err == nil && len(fields) > 1 {
				old.requests, err = strconv.Atoi(fields[1])
			}
			if err != nil {
				fmt.Printf("seeds.txt: %v\n", err)
				os.Exit(2)
			}
			if !play(old, keptSeed) {
				os.Exit(1)
			}
		}
	}
	opt.requests /= *workers
	var all sync.WaitGroup
	passed := make([]bool, *workers)
	for worker := range *workers {
		all.Go(func() { passed[worker] = play(opt, *seed+uint64(worker)) })
	}
	all.Wait()
	for _, pass := range passed {
		if !pass {
			os.Exit(1)
		}
	}
}

func play(opt options, seed uint64) bool {
	fmt.Printf("seed %d: %d requests\n", seed, opt.requests)
	began := time.Now()
	report, err := runSeed(opt, seed)
	if err != nil {
		again := fmt.Sprintf("differential -seed %d -requests %d -restarts %d -keys %d",
			seed, opt.requests, opt.restarts, opt.keys)
		if opt.tls.client != nil {
			again += " -tls DIR"
		}
		fmt.Printf("\nFAIL seed %d (%s)\n%v\n", seed, again, err)
		return false
	}
	fmt.Printf("seed %d: equal after %s, %.0f s\n", seed, report, time.Since(began).Seconds())
	return true
}
