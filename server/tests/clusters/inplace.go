package main

import (
	"context"
	"slices"
	"syscall"
)

// inPlace has Orlop go on with the data of each stock member, the one that leads last. Members keep ids, addresses and
// flags. The fixed rate of requests avoids one that is stopped; what is killed is no news to anybody.
func (r *replacement) inPlace(ctx context.Context) error {
	keeper := r.members[len(r.members)-1]
	for i, m := range r.members {
		leader := keeper
		if m == keeper && r.isMoved {
			leader = r.members[0]
		}
		if err := r.lead(ctx, leader); err != nil {
			return err
		}
		signal := syscall.SIGTERM
		if r.isMoved == (i%2 == 0) {
			signal = syscall.SIGKILL
		} else {
			r.pressure.speaksTo(r.without(m)...)
		}
		if err := r.imported(ctx, m, signal); err != nil {
			return err
		}
		r.pressure.speaksTo(r.without(m)...)
		if err := r.provesItself(ctx, m); err != nil {
			return err
		}
	}
	return nil
}

// without are the others.
func (r *replacement) without(m *member) []*member {
	return slices.DeleteFunc(slices.Clone(r.members), func(each *member) bool { return each == m })
}

// imported ends a stock member and starts Orlop on its data.
func (r *replacement) imported(ctx context.Context, m *member, signal syscall.Signal) error {
	leader, err := r.leader(ctx)
	if err != nil {
		return err
	}
	way := ""
	if r.members[leader] == m {
		way = " while it led"
	}
	if err := m.end(signal); err != nil {
		return err
	}
	m.binary, m.isOrlop = r.opt.server, true
	m.introduce(r.members, "new", r.dir)
	r.flag(m)
	m.flags = append(m.flags, "--import")
	if err := m.start(); err != nil {
		return err
	}
	if err := m.answers(ctx); err != nil {
		return err
	}
	r.say("%s was ended%s (%v), and Orlop goes on with its data", m.name, way, signal)
	return r.diedUnasked()
}
