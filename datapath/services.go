package datapath

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"knarr.dev/knarr/datapath/plan"
	"knarr.dev/knarr/datapath/spec"
)

// Set makes the node translate exactly the services of the state and returns when the kernel does. Its cost grows with
// what changed. Services that cannot be served are left out and named once in the error; all others are in force then
// nevertheless. After any other error the same state may be set again. The state must not be modified afterwards.
func (d *Datapath) Set(ctx context.Context, s spec.State) error {
	d.set.Lock()
	defer d.set.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if d.planner == nil {
		image, err := d.kernel.Read()
		if err != nil {
			return err
		}
		d.planner = plan.New(image)
		d.nft = false
	}
	changes, rejected := d.planner.Plan(s)
	if err := d.kernel.Apply(changes); err != nil {
		d.planner = nil
		return fmt.Errorf("setting %d services: %w", len(s.Services), err)
	}
	if changes.External {
		d.nft = false
	}
	if !d.nft {
		if err := d.buildTable(d.planner.External()); err != nil {
			return errors.Join(rejected, err)
		}
		d.nft = true
	}
	if !d.retired {
		if err := d.kernel.Retire(); err != nil {
			return errors.Join(rejected, err)
		}
		d.retired = true
	}
	return rejected
}

// ServiceStats counts connections (TCP, connected UDP) and first datagrams of unconnected UDP sockets, as clients on
// this node made them, since the backend was added.
type ServiceStats struct {
	Service  spec.Key
	Backends map[netip.AddrPort]uint64
	// Refused had no backend to go to.
	Refused uint64
}

// Stats returns the counters of every service.
func (d *Datapath) Stats() ([]ServiceStats, error) {
	d.set.Lock()
	defer d.set.Unlock()
	if d.planner == nil {
		return nil, nil
	}
	counts, err := d.kernel.Counts()
	if err != nil {
		return nil, err
	}
	byKey := map[spec.Key]*ServiceStats{}
	byPool := map[uint64]*ServiceStats{}
	d.planner.Pools(func(key spec.Key, pool uint64) {
		s := byKey[key]
		if s == nil {
			s = &ServiceStats{Service: key, Backends: map[netip.AddrPort]uint64{}}
			byKey[key] = s
		}
		byPool[pool] = s
	})
	for m, n := range counts {
		s := byPool[m.Pool]
		switch {
		case s == nil:
		case m.Backend.IsValid():
			s.Backends[m.Backend] += n
		default:
			s.Refused += n
		}
	}
	out := make([]ServiceStats, 0, len(byKey))
	for _, s := range byKey {
		out = append(out, *s)
	}
	return out, nil
}
