package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// cluster is one or more servers that are members of one cluster. Requests go to the first; which of them leads is left
// to chance.
type cluster struct {
	*server
	others []*server
}

func newCluster(name, binary, flags, parent string, credentials credentials, members int) (*cluster, error) {
	c := &cluster{}
	var all, initial []string
	for i := range members {
		s, err := newServer(name, binary, flags, parent, credentials)
		if err != nil {
			return nil, errors.Join(err, c.discard())
		}
		if i == 0 {
			c.server = s
		} else {
			c.others = append(c.others, s)
		}
		all = append(all, "m"+strconv.Itoa(i+1))
		initial = append(initial, all[i]+"="+s.peer)
	}
	for i, s := range c.all() {
		s.flags = append(s.flags, "--name", all[i], "--initial-cluster", strings.Join(initial, ","))
	}
	return c, nil
}

func (c *cluster) all() []*server {
	if c.server == nil {
		return nil
	}
	return append([]*server{c.server}, c.others...)
}

// start returns when all members answer.
func (c *cluster) start() error {
	for _, s := range c.all() {
		if err := s.launch(); err != nil {
			return err
		}
	}
	for _, s := range c.all() {
		if err := s.await(); err != nil {
			return err
		}
	}
	return nil
}

func (c *cluster) stop(signal syscall.Signal) error {
	var errs []error
	for _, s := range c.all() {
		errs = append(errs, s.stop(signal))
	}
	return errors.Join(errs...)
}

func (c *cluster) discard() error {
	for _, s := range c.all() {
		s.discard()
	}
	return nil
}

// agree checks that all members hold the same at revision.
func (c *cluster) agree(revision int64) error {
	if len(c.others) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	hash := func(s *server) (string, error) {
		// So that it has applied all that the first one has.
		if _, err := pb.NewKVClient(s.conn).Range(ctx, &pb.RangeRequest{Key: []byte("health")}); err != nil {
			return "", err
		}
		answer, err := pb.NewMaintenanceClient(s.conn).HashKV(ctx, &pb.HashKVRequest{Revision: revision})
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("hash %d, compacted %d", answer.Hash, answer.CompactRevision), nil
	}
	first, err := hash(c.server)
	if err != nil {
		return err
	}
	for i, s := range c.others {
		// A compaction is known at once, and its sweep ends a little later.
		until := time.Now().Add(callTimeout)
		for {
			other, err := hash(s)
			if err != nil {
				return err
			}
			if other == first {
				break
			}
			if time.Now().After(until) {
				return fmt.Errorf("%s: member %d has %s at revision %d, the first has %s",
					c.name, i+2, other, revision, first)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	return nil
}
