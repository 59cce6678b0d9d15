package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
)

// What a line may differ in: times, ports, sizes of messages with ids in them, and texts for people. etcd's hash of
// what a compaction left takes reading all of it.
var loose = []string{"level", "ts", "caller", "took", "time spent", "start time", "remote", "request", "error",
	"request content", "response size", "current-db-size-bytes", "current-db-size", "current-db-size-in-use-bytes",
	"current-db-size-in-use"}

const lacking = "hash"

var fieldName = regexp.MustCompile(`[{,]"([a-z -]+)":`)

// told are the lines about requests in a log: their message, their fields in order, and the values that are compared.
func told(s *server) (lines []string, err error) {
	log, err := os.ReadFile(filepath.Join(s.dir, "log"))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(log)) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			return nil, fmt.Errorf("%s: %w: %s", s.name, err, line)
		}
		message := fields["msg"]
		if message != "request stats" && message != "apply request took too long" &&
			message != "finished scheduled compaction" {
			continue
		}
		var shown strings.Builder
		for _, found := range fieldName.FindAllStringSubmatch(line, -1) {
			name := found[1]
			switch {
			case name == "caller" || name == lacking || fields[name] == nil:
			case slices.Contains(loose, name) || name == "response" && strings.Contains(line, "lease_"):
				fmt.Fprintf(&shown, "%s ", name)
			default:
				fmt.Fprintf(&shown, "%s=%v ", name, fields[name])
			}
		}
		lines = append(lines, shown.String())
	}
	return lines, nil
}

// runLines compares what the logs say of the same calls, with every call and every entry logged. Orlop's lines may go
// on where etcd's end.
func runLines(opt options) error {
	var lines [2][]string
	for side, binary := range [2]string{opt.etcd, opt.orlop} {
		flags := [2]string{opt.etcdFlags, opt.orlopFlags}[side] + " --log-level debug --warning-apply-duration 0s"
		s, err := newServer(sideNames[side], binary, flags, opt.dataDir, credentials{})
		if err != nil {
			return err
		}
		defer s.discard()
		if err := errors.Join(s.start(), versionDecided(s), exercise(s)); err != nil {
			return err
		}
		// Its log is whole when it has ended.
		if err := s.stop(syscall.SIGTERM); err != nil {
			return err
		}
		if lines[side], err = told(s); err != nil {
			return err
		}
	}
	// Orlop keeps lines of a kind to ten in a second, and its health checks read no keys.
	const slow = "apply request took too long"
	var faults []error
	for _, line := range lines[etcd] {
		isThere := slices.ContainsFunc(lines[orlop], func(ours string) bool { return strings.HasPrefix(ours, line) })
		if !isThere && !strings.Contains(line, slow) {
			faults = append(faults, fmt.Errorf("orlop's log has no line that begins with: %s", line))
		}
	}
	for _, line := range lines[orlop] {
		isThere := slices.ContainsFunc(lines[etcd], func(theirs string) bool { return strings.HasPrefix(line, theirs) })
		if !isThere && strings.Contains(line, slow) {
			faults = append(faults, fmt.Errorf("etcd's log has no line like: %s", line))
		}
	}
	if len(faults) > 0 {
		faults = append(faults, fmt.Errorf("--- etcd\n%s\n--- orlop\n%s", strings.Join(lines[etcd], "\n"),
			strings.Join(lines[orlop], "\n")))
	}
	return errors.Join(faults...)
}
