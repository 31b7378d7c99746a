package pod

import (
	"log/slog"
	"sync"
	"time"
)

// timeline notes when a pod first came to each phase of its start. It is logged
// once, at debug level, when the API shows the pod running; tasks and the actor
// note side by side.
type timeline struct {
	now   func() time.Time
	begin time.Time

	mu    sync.Mutex
	marks []slog.Attr // phase and the time since the actor was made
	done  bool
}

func newTimeline(now func() time.Time) *timeline { return &timeline{now: now, begin: now()} }

// mark notes the first time of a phase.
func (t *timeline) mark(phase string) {
	at := t.now().Sub(t.begin)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.done {
		return
	}
	for _, m := range t.marks {
		if m.Key == phase {
			return
		}
	}
	t.marks = append(t.marks, slog.Duration(phase, at))
}

// end returns the phases in the order in which they were reached; once.
func (t *timeline) end() []slog.Attr {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.done {
		return nil
	}
	t.done = true
	marks := t.marks
	t.marks = nil
	return marks
}
