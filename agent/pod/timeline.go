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

// over tells whether the pod has been seen to run.
func (t *timeline) over() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.done
}

// span is a time from begin to end; zero: none.
type span struct{ begin, end time.Time }

// with returns the span that covers both.
func (s span) with(begin, end time.Time) span {
	if s.begin.IsZero() {
		return span{begin, end}
	}
	if begin.Before(s.begin) {
		s.begin = begin
	}
	if end.After(s.end) {
		s.end = end
	}
	return s
}

func (s span) length() time.Duration { return s.end.Sub(s.begin) }

// together is how long both took, what they have in common counted once.
func (s span) together(o span) time.Duration {
	if s.begin.IsZero() || o.begin.IsZero() || s.begin.After(o.end) || o.begin.After(s.end) {
		return s.length() + o.length()
	}
	return s.with(o.begin, o.end).length()
}
