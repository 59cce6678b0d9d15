package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// load is what bench reports of a run. Requests are all that ended, well or not.
type load struct {
	Requests, Errors int
	Seconds          float64 `json:"elapsed_s"`
	Latency          []struct {
		P50 float64 `json:"p50_ms"`
		P99 float64 `json:"p99_ms"`
	}
}

func (l load) answered() int { return l.Requests - l.Errors }

func (l load) perSecond() float64 { return float64(l.answered()) / l.Seconds }

func (l load) String() string {
	return fmt.Sprintf("%.0f/s, p50 %.2f ms, p99 %.2f ms, %d errors", l.perSecond(), l.Latency[0].P50, l.Latency[0].P99,
		l.Errors)
}

// bench runs Orlop's load generator to its end. Requests that fail are in its report.
func (s *stand) bench(ctx context.Context, command string, endpoints []string, flags ...string) (load, error) {
	all := append([]string{
		command, "--json", "--conns", fmt.Sprint(connections), "--endpoints", strings.Join(endpoints, ","),
	}, flags...)
	child := exec.CommandContext(ctx, s.opt.bench, all...)
	child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var report, log bytes.Buffer
	child.Stdout, child.Stderr = &report, &log
	ended := child.Run()
	var l load
	err := json.Unmarshal(report.Bytes(), &l)
	if err == nil && (l.answered() == 0 || len(l.Latency) == 0) {
		err = errors.New("no request was answered")
	}
	if err != nil {
		return load{}, fmt.Errorf("bench %q: %w\n%s", all, errors.Join(ended, err), log.Bytes())
	}
	return l, nil
}

// loop puts at a fixed rate, whatever the members do. No put is tried again.
type loop struct {
	client *clientv3.Client
	end    context.CancelFunc
	calls  sync.WaitGroup

	mutex sync.Mutex
	tally tally
}

// tally is how puts went. The time of each counts from when it was due.
type tally struct {
	puts, errors          int
	slowest, slowestError time.Duration
	firstError            error
}

func (t *tally) add(more tally) {
	t.puts += more.puts
	t.errors += more.errors
	t.slowest = max(t.slowest, more.slowest)
	t.slowestError = max(t.slowestError, more.slowestError)
	if t.firstError == nil {
		t.firstError = more.firstError
	}
}

func (t tally) String() string {
	text := fmt.Sprintf("slowest of %d puts %d ms, %d errors", t.puts, t.slowest.Milliseconds(), t.errors)
	if t.errors > 0 {
		text += fmt.Sprintf(" (the slowest after %d ms; %v)", t.slowestError.Milliseconds(), t.firstError)
	}
	return text
}

// startLoop has one client of all these members put.
func startLoop(ctx context.Context, urls ...string) (*loop, error) {
	client, err := newClient(urls...)
	if err != nil {
		return nil, err
	}
	// Connections are there before it counts.
	for range 2 * len(urls) {
		if err := poll(ctx, func(ctx context.Context) error {
			_, err := client.Get(ctx, "loop")
			return err
		}); err != nil {
			client.Close()
			return nil, err
		}
	}
	ctx, end := context.WithCancel(ctx)
	l := &loop{client: client, end: end}
	l.calls.Go(func() { l.run(ctx) })
	return l, nil
}

func (l *loop) run(ctx context.Context) {
	began := time.Now()
	for number := 0; ; number++ {
		due := began.Add(time.Duration(number) * time.Second / calmRate)
		if pause(ctx, time.Until(due)); ctx.Err() != nil {
			return
		}
		l.calls.Go(func() { l.put(fmt.Sprint("loop/", number%calmRate), due) })
	}
}

func (l *loop) put(key string, due time.Time) {
	// What is under way at the end still counts.
	ctx, cancel := context.WithTimeout(context.Background(), 2*callTimeout)
	defer cancel()
	once := tally{puts: 1}
	if _, err := l.client.Put(ctx, key, ""); err != nil {
		once.errors, once.firstError, once.slowestError = 1, err, time.Since(due)
	} else {
		once.slowest = time.Since(due)
	}
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.tally.add(once)
}

// take is how puts went that were answered since the last call.
func (l *loop) take() tally {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	taken := l.tally
	l.tally = tally{}
	return taken
}

func (l *loop) stop() tally {
	l.end()
	l.calls.Wait()
	l.client.Close()
	return l.take()
}

// The kernel tells programs of time in ticks of this length, on every machine that we know (USER_HZ).
const tick = time.Second / 100

// cpuOfEach is what each member has used, in user and system mode.
func (s *stand) cpuOfEach() ([]time.Duration, error) {
	used := make([]time.Duration, s.size())
	for i, m := range s.members {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", m.pid()))
		if err != nil {
			return nil, err
		}
		// From the state on, behind the name: user and system time are the twelfth and thirteenth.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) < 13 {
			return nil, fmt.Errorf("/proc/%d/stat: %q", m.pid(), stat)
		}
		for _, field := range fields[11:13] {
			ticks, err := strconv.ParseInt(field, 10, 64)
			if err != nil {
				return nil, err
			}
			used[i] += time.Duration(ticks) * tick
		}
	}
	return used, nil
}

// memory is a line of the process's status, in bytes: VmRSS is what is resident, and VmHWM the most that ever was.
func (m *member) memory(line string) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.pid()))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(status), "\n"+line+":")
	var kib int64
	if _, err := fmt.Sscanf(rest, "%d kB", &kib); err != nil {
		return 0, fmt.Errorf("%s of %s: %w", line, m.name, err)
	}
	return kib << 10, nil
}

// watchMemory looks at what is resident until the answer is called for, which is the most that was seen.
func watchMemory(ctx context.Context, m *member) func() int64 {
	ctx, end := context.WithCancel(ctx)
	answer := make(chan int64, 1)
	go func() {
		highest := int64(0)
		for {
			// A member that has died is found by others.
			now, _ := m.memory("VmRSS")
			highest = max(highest, now)
			if ctx.Err() != nil {
				answer <- highest
				return
			}
			pause(ctx, 200*time.Millisecond)
		}
	}()
	return func() int64 {
		end()
		return <-answer
	}
}
