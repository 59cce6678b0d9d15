package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"
)

// newLearner has the cluster expect one more member, which does not run yet.
func (c *cluster) newLearner(ctx context.Context, at *member, binary string) (*member, error) {
	m, err := c.newMember(binary)
	if err != nil {
		return nil, err
	}
	m.advertisedURL = m.peerURL
	err = settled(ctx, func(ctx context.Context) error {
		_, err := at.client.MemberAddAsLearner(ctx, []string{m.peerURL})
		return err
	})
	if err != nil {
		m.discard()
		return nil, fmt.Errorf("%s is added at %s: %w", m.name, at.name, err)
	}
	m.introduce(append(slices.Clone(c.members), m), "existing", c.dir)
	c.flag(m)
	return m, nil
}

// promote makes a voter of a learner that has come far enough, which is waited for.
func (c *cluster) promote(ctx context.Context, at, m *member) error {
	id, err := m.id(ctx)
	if err != nil {
		return err
	}
	err = settled(ctx, func(ctx context.Context) error {
		_, err := at.client.MemberPromote(ctx, id)
		return err
	})
	if err != nil {
		return fmt.Errorf("%s is promoted at %s: %w", m.name, at.name, err)
	}
	c.admit(m)
	return nil
}

// remove takes a member out, and returns when its process has ended by itself. Its data goes.
func (c *cluster) remove(ctx context.Context, at, m *member) error {
	id, err := m.id(ctx)
	if err != nil {
		return err
	}
	m.mutex.Lock()
	m.endWasWanted = true
	m.mutex.Unlock()
	err = settled(ctx, func(ctx context.Context) error {
		_, err := at.client.MemberRemove(ctx, id)
		return err
	})
	if err != nil {
		return fmt.Errorf("%s is removed at %s: %w", m.name, at.name, err)
	}
	c.dismiss(m)
	select {
	case <-m.exited:
	case <-time.After(patience):
		return fmt.Errorf("%s is removed and does not end\n%s", m.name, m.logTail())
	}
	if code := m.child.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("%s is removed and ends with status %d\n%s", m.name, code, m.logTail())
	}
	m.discard()
	return os.RemoveAll(m.dir)
}

// lead makes a member the leader, and waits until a majority knows.
func (c *cluster) lead(ctx context.Context, m *member) error {
	id, err := m.id(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return poll(ctx, func(ctx context.Context) error {
		leader, err := c.leader(ctx)
		if err != nil || c.members[leader] == m {
			return err
		}
		_, err = c.members[leader].client.MoveLeader(ctx, id)
		return errors.Join(err, fmt.Errorf("%s does not lead yet", m.name))
	})
}

// id is the member's own word.
func (m *member) id(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var id uint64
	err := poll(ctx, func(ctx context.Context) error {
		if err := m.diedUnasked(); err != nil {
			return final{err}
		}
		status, err := m.client.Status(ctx, m.clientURL)
		if err == nil {
			id = status.Header.MemberId
		}
		return err
	})
	return id, err
}
