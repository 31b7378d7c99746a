package lean

import (
	"context"
	"log/slog"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// Intervals of Keep.
const (
	interval = 5 * time.Second
	// much is how many bytes an interval allocates in a busy time: a fiftieth of what
	// writes at full speed take, and ten times what a cluster at rest does.
	much = 16 << 20
	// calm is after how many quiet intervals a busy time is over.
	calm = 2
)

// Shares of the live heap, in percent, by which the heap may grow between two collections.
const (
	atRest   = 100 // as Go's own
	whenBusy = 200 // collecting takes an eighth of a write's time at 100
	// large is the live heap in bytes from which it is at rest's also in a busy time:
	// collections are rare then, and twice as much again is too much to take.
	large = 128 << 20
)

// growth is by how much the heap may grow.
func growth(busy bool, live uint64) (percent int) {
	if busy && live < large {
		return whenBusy
	}
	return atRest
}

// Keep gives memory back whenever a busy time is over, of which the start is the
// first, and lets the heap grow further while one lasts, until ctx ends. The
// environment's GOGC, if there is one, is obeyed.
func Keep(ctx context.Context, log *slog.Logger) {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	p := pace{busy: true, seen: sample[0].Value.Uint64()}
	fixed := os.Getenv("GOGC") != ""
	t := time.NewTicker(interval)
	defer t.Stop()
	for percent := 0; ; {
		if now := growth(p.busy, sample[1].Value.Uint64()); now != percent && !fixed {
			percent = now
			debug.SetGCPercent(percent)
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		metrics.Read(sample)
		before := p.busy
		p.next(sample[0].Value.Uint64())
		if !before || p.busy {
			continue
		}
		if err := Rest(); err != nil {
			log.Warn("memory that nobody needs could not be given back", "error", err)
		}
	}
}

// pace tells busy times from quiet ones.
type pace struct {
	busy  bool
	quiet int    // quiet intervals in a row
	seen  uint64 // bytes allocated until the last interval's end
}

// next is told at an interval's end how many bytes have been allocated in all.
func (p *pace) next(allocated uint64) {
	if allocated-p.seen >= much {
		p.busy, p.quiet = true, 0
	} else if p.quiet++; p.quiet >= calm {
		p.busy = false
	}
	p.seen = allocated
}
