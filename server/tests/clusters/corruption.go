package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// How often members are compared here.
const compareEvery = "1s"

// checkCorruption has one of three members hold other data than the others, and sees that the leader finds out which:
// from all that they hold, and from their compactions; and that the member does not start if it compares itself first.
// What is changed is a file of etcd's. It goes on under the eyes of an Orlop leader, or Orlop takes it over under those
// of a stock leader.
func checkCorruption(ctx context.Context, opt options) error {
	if opt.etcd == "" || opt.server == "" {
		return errors.New("-corruption needs -server and -etcd")
	}
	for _, leader := range []string{opt.server, opt.etcd} {
		for _, each := range []struct {
			name  string
			flags []string
			then  func(context.Context, *cluster) error
		}{
			{"all that they hold", []string{"--corrupt-check-time", compareEvery}, nil},
			{
				"compactions",
				[]string{"--feature-gates", "CompactHashCheck=true", "--compact-hash-check-time", compareEvery},
				compactAnew,
			},
		} {
			if err := findCorrupt(ctx, opt, leader, each.flags, each.then); err != nil {
				return fmt.Errorf("%s: %w", each.name, err)
			}
			fmt.Printf("ok: %s finds the member that holds something else by %s\n", filepath.Base(leader), each.name)
		}
	}
	return nil
}

func findCorrupt(
	ctx context.Context, opt options, leader string, flags []string, then func(context.Context, *cluster) error,
) error {
	dir, err := os.MkdirTemp(opt.dataDir, "clusters-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	c, err := newCluster([]string{leader, leader, opt.etcd}, dir)
	if err != nil {
		return err
	}
	defer c.discard()
	c.addFlags(nil, nil, flags)
	if err := c.startAll(ctx); err != nil {
		return err
	}
	changed := c.members[2]
	if err := c.leadBy(ctx, 0); err != nil {
		return err
	}
	status, err := c.status(ctx, 2)
	if err != nil {
		return err
	}
	if err := fill(ctx, changed.client); err != nil {
		return err
	}
	if err := c.end(2, syscall.SIGTERM); err != nil {
		return err
	}
	if err := changeValue(filepath.Join(changed.data(), "member", "snap", "db")); err != nil {
		return err
	}
	if leader == opt.etcd {
		changed.binary, changed.flags = opt.server, append(changed.flags, "--import")
	}
	if err := refusesToStart(ctx, c); err != nil {
		return fmt.Errorf("%w\n%s", err, c.logTails())
	}
	if err := c.start(2); err != nil {
		return err
	}
	if err := changed.answers(ctx); err != nil {
		return err
	}
	if then != nil {
		if err := then(ctx, c); err != nil {
			return err
		}
	}
	if err := accused(ctx, c, status.Header.MemberId); err != nil {
		return fmt.Errorf("%w\n%s", err, c.logTails())
	}
	return nil
}

// refusesToStart shows that the changed member ends if it compares itself with the others before it serves.
func refusesToStart(ctx context.Context, c *cluster) error {
	m := c.members[2]
	flags := m.flags
	m.flags = append(slices.Clone(flags), "--feature-gates", "InitialCorruptCheck=true")
	m.mark()
	if err := c.start(2); err != nil {
		return err
	}
	m.mutex.Lock()
	m.endWasWanted = true
	exited := m.exited
	m.mutex.Unlock()
	select {
	case <-exited:
	case <-time.After(patience):
		return errors.New("the changed member serves")
	}
	m.mutex.Lock()
	m.child = nil
	m.mutex.Unlock()
	m.flags = flags
	c.network.proxies[2].close()
	return m.says(ctx, "found data inconsistency with peers")
}

// leadBy has a member lead.
func (c *cluster) leadBy(ctx context.Context, i int) error {
	leader, err := c.leader(ctx)
	if err != nil || leader == i {
		return err
	}
	status, err := c.status(ctx, i)
	if err != nil {
		return err
	}
	_, err = c.members[leader].client.MoveLeader(ctx, status.Header.MemberId)
	return err
}

// fill writes some keys more than once, and compacts. The member that is asked has done so when it returns: those that
// have compacted to elsewhere are not compared.
func fill(ctx context.Context, client *clientv3.Client) error {
	for i := range 60 {
		if _, err := client.Put(ctx, fmt.Sprintf("key%d", i%40), fmt.Sprintf("value%d", i)); err != nil {
			return err
		}
	}
	_, err := client.Compact(ctx, 30, clientv3.WithCompactPhysical())
	return err
}

// compactAnew gives members something to compare.
func compactAnew(ctx context.Context, c *cluster) error {
	client := c.members[0].client
	answer, err := client.Put(ctx, "more", "")
	if err != nil {
		return err
	}
	_, err = client.Compact(ctx, answer.Header.Revision-1)
	return err
}

// changeValue changes a value in a stopped member's file, and nothing else of it: the last byte of the last record.
func changeValue(path string) error {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: patience})
	if err != nil {
		return err
	}
	defer db.Close()
	return db.Update(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket([]byte("key"))
		key, value := bucket.Cursor().Last()
		if len(key) < 17 || binary.BigEndian.Uint64(key) == 0 {
			return fmt.Errorf("%x is no revision", key)
		}
		changed := []byte(strings.Replace(string(value), "value", "VALUE", 1))
		if slices.Equal(changed, value) {
			return fmt.Errorf("%q is no record of ours", value)
		}
		return bucket.Put(slices.Clone(key), changed)
	})
}

// accused returns when this member, and no other, has the CORRUPT alarm, and the cluster takes no writes.
func accused(ctx context.Context, c *cluster, id uint64) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	client := c.members[0].client
	return poll(ctx, func(ctx context.Context) error {
		answer, err := client.AlarmList(ctx)
		if err != nil {
			return err
		}
		if len(answer.Alarms) == 0 {
			return errors.New("nobody is accused")
		}
		only := answer.Alarms[0]
		if len(answer.Alarms) > 1 || only.MemberID != id || only.Alarm != pb.AlarmType_CORRUPT {
			return final{fmt.Errorf("accused: %v; it is %x", answer.Alarms, id)}
		}
		if _, err := client.Put(ctx, "after", ""); err == nil || !strings.Contains(err.Error(), "corrupt cluster") {
			return final{fmt.Errorf("a put is answered with %w", err)}
		}
		return nil
	})
}
