package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// family is one family of /metrics, without its numbers.
type family struct {
	name, kind, help string
	// Label sets as written, without `le` and `quantile`, with what differs from member to member replaced.
	series map[string]bool
	// Bounds of the buckets as written.
	buckets []string
}

var (
	sampleLine = regexp.MustCompile(`^([a-z_]+)(?:\{(.*)\})? \S+$`)
	bound      = regexp.MustCompile(`,?(le|quantile)="([^"]*)"`)
	memberID   = regexp.MustCompile(`="[0-9a-f]{13,16}"`)
	goRelease  = regexp.MustCompile(`^(server_go_version|version)="(go|none: Orlop )[^"]*"$`)
	labelName  = regexp.MustCompile(`([A-Za-z_]+)="`)
)

func parseFamilies(text string) (map[string]*family, error) {
	families := map[string]*family{}
	var current *family
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if rest, ok := strings.CutPrefix(line, "# HELP "); ok {
			name, help, _ := strings.Cut(rest, " ")
			current = &family{name: name, help: help, series: map[string]bool{}}
			families[name] = current
			continue
		}
		if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			_, current.kind, _ = strings.Cut(rest, " ")
			continue
		}
		found := sampleLine.FindStringSubmatch(line)
		if found == nil {
			return nil, fmt.Errorf("no sample: %q", line)
		}
		labels := found[2]
		if edge := bound.FindStringSubmatch(labels); edge != nil {
			labels = bound.ReplaceAllString(labels, "")
			if !slices.Contains(current.buckets, edge[2]) {
				current.buckets = append(current.buckets, edge[2])
			}
		}
		labels = memberID.ReplaceAllString(labels, `="ID"`)
		labels = goRelease.ReplaceAllString(labels, `$1="RELEASE"`)
		current.series[labels] = true
	}
	return families, nil
}

// list is the committed form of families: two to four lines for each.
func list(families map[string]*family) string {
	var text strings.Builder
	for _, f := range sorted(families) {
		fmt.Fprintf(&text, "%s %s\n  help %s\n", f.name, f.kind, f.help)
		names := map[string]bool{}
		for labels := range f.series {
			for _, found := range labelName.FindAllStringSubmatch(labels, -1) {
				names[found[1]] = true
			}
		}
		if len(names) > 0 {
			var all []string
			for name := range names {
				all = append(all, name)
			}
			slices.Sort(all)
			fmt.Fprintf(&text, "  labels %s\n", strings.Join(all, " "))
		}
		if len(f.buckets) > 0 {
			fmt.Fprintf(&text, "  buckets %s\n", strings.Join(f.buckets, " "))
		}
	}
	return text.String()
}

func sorted(families map[string]*family) []*family {
	var all []*family
	for _, f := range families {
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b *family) int { return cmp.Compare(a.name, b.name) })
	return all
}

// compareFamilies says how orlop's families differ from etcd's. Orlop may have more of its own, families and services,
// and etcd's may be left out if `leftOut` names them.
func compareFamilies(etcds, orlops map[string]*family, leftOut map[string]bool) error {
	var faults []error
	for _, theirs := range sorted(etcds) {
		ours := orlops[theirs.name]
		if ours == nil || leftOut[theirs.name] {
			if (ours == nil) != leftOut[theirs.name] {
				faults = append(faults, fmt.Errorf("%s: there: %v, left out: %v", theirs.name, ours != nil,
					leftOut[theirs.name]))
			}
			continue
		}
		if ours.kind != theirs.kind || !slices.Equal(ours.buckets, theirs.buckets) {
			faults = append(faults, fmt.Errorf("%s: %s %v, etcd's is %s %v", theirs.name, ours.kind, ours.buckets,
				theirs.kind, theirs.buckets))
		}
		words := strings.TrimSuffix(theirs.help, ".")
		if ours.help != theirs.help && !strings.HasPrefix(ours.help, words+". Here: ") {
			faults = append(faults, fmt.Errorf("%s: help %q, etcd's is %q", theirs.name, ours.help, theirs.help))
		}
		for labels := range theirs.series {
			if !ours.series[labels] {
				faults = append(faults, fmt.Errorf("%s{%s} is missing", theirs.name, labels))
			}
		}
		for labels := range ours.series {
			if !theirs.series[labels] && !strings.Contains(labels, `grpc_service="orlop.v1.`) {
				faults = append(faults, fmt.Errorf("%s{%s} is not etcd's", theirs.name, labels))
			}
		}
	}
	for _, ours := range sorted(orlops) {
		if etcds[ours.name] == nil && !strings.HasPrefix(ours.name, "orlop_") {
			faults = append(faults, fmt.Errorf("%s is not etcd's", ours.name))
		}
	}
	return errors.Join(faults...)
}

// exercise makes the calls after which a member shows most of its families.
func exercise(s *server) error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	stream, err := pb.NewWatchClient(s.conn).Watch(ctx)
	if err != nil {
		return err
	}
	create := &pb.WatchCreateRequest{Key: []byte("a"), ProgressNotify: true}
	request := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}}
	if err := errors.Join(stream.Send(request), second(stream.Recv())); err != nil {
		return err
	}
	kv, lease, maintenance := pb.NewKVClient(s.conn), pb.NewLeaseClient(s.conn), pb.NewMaintenanceClient(s.conn)
	put := &pb.PutRequest{Key: []byte("a"), Value: []byte("v")}
	op := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: put}}
	read := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("a")}}}
	alarm := &pb.AlarmRequest{Alarm: pb.AlarmType_NOSPACE, Action: pb.AlarmRequest_ACTIVATE, MemberID: 1}
	disarm := proto.CloneOf(alarm)
	disarm.Action = pb.AlarmRequest_DEACTIVATE
	err = errors.Join(
		second(kv.Put(ctx, put)),
		second(stream.Recv()),
		second(kv.Range(ctx, &pb.RangeRequest{Key: []byte("a")})),
		second(kv.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{op}})),
		second(kv.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{read}})),
		second(kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("a")})),
		second(kv.Compact(ctx, &pb.CompactionRequest{Revision: 2, Physical: true})),
		second(lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 60, ID: 7})),
		second(lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: 7})),
		second(maintenance.Hash(ctx, &pb.HashRequest{})),
		second(maintenance.HashKV(ctx, &pb.HashKVRequest{})),
		second(maintenance.Defragment(ctx, &pb.DefragmentRequest{})),
		second(maintenance.Alarm(ctx, alarm)),
	)
	if err != nil {
		return err
	}
	// Errors, and reads by etcd's own checks.
	_, _ = kv.Range(ctx, &pb.RangeRequest{Key: []byte("a"), Revision: 99})
	_, _ = kv.Put(ctx, &pb.PutRequest{Key: []byte("a"), Lease: 99})
	_, _ = lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: 99})
	for _, path := range []string{"/health", "/livez", "/readyz"} {
		if err := second(fetch(s, path)); err != nil {
			return err
		}
	}
	backup, err := maintenance.Snapshot(ctx, &pb.SnapshotRequest{})
	for err == nil {
		_, err = backup.Recv()
	}
	if !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// versionDecided waits until the cluster has a version, which comes after the start.
func versionDecided(s *server) error {
	for began := time.Now(); time.Since(began) < startTimeout; time.Sleep(20 * time.Millisecond) {
		answer, err := fetch(s, "/version")
		if err != nil || !strings.Contains(answer, "not_decided") {
			return err
		}
	}
	return errors.New("no version of the cluster was decided")
}

func fetch(s *server, path string) (string, error) {
	response, err := http.Get(s.url() + path)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

func second[T any](_ T, err error) error { return err }

func scrape(s *server) (map[string]*family, error) {
	text, err := fetch(s, "/metrics")
	if err != nil {
		return nil, err
	}
	return parseFamilies(text)
}

// runFamilies compares the families of both servers after the same calls, and etcd's with the committed list, which
// the tests of the server read.
func runFamilies(opt options, dir string, write bool) error {
	var families [2]map[string]*family
	for side, binary := range [2]string{opt.etcd, opt.orlop} {
		s, err := newServer(sideNames[side], binary, [2]string{opt.etcdFlags, opt.orlopFlags}[side], opt.dataDir,
			credentials{})
		if err != nil {
			return err
		}
		defer s.discard()
		if err := errors.Join(s.start(), versionDecided(s)); err != nil {
			return err
		}
		if err := exercise(s); err != nil {
			return err
		}
		if families[side], err = scrape(s); err != nil {
			return err
		}
	}
	path := dir + "/stock_families.txt"
	if write {
		return os.WriteFile(path, []byte(list(families[etcd])), 0o644)
	}
	leftOut := map[string]bool{}
	text, err := os.ReadFile(dir + "/left_out.txt")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		name, _, _ := strings.Cut(line, ":")
		leftOut[name] = true
	}
	if err := compareFamilies(families[etcd], families[orlop], leftOut); err != nil {
		return err
	}
	committed, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if now := []byte(list(families[etcd])); !bytes.Equal(committed, now) {
		return fmt.Errorf("%s is not what this etcd shows; -write-families writes it anew", path)
	}
	return nil
}
