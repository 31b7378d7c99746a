package remote

import (
	"context"
	"log/slog"
	"sync"

	"knarr.dev/knarr/client"
)

// subscription hands events to one subscriber, in order, without making the cache
// wait for it.
type subscription struct {
	fn   func(client.Event)
	done chan struct{} // closed when fn is called no more

	mu    sync.Mutex
	queue []client.Event
	ended bool
	wake  chan struct{}
}

func newSubscription(fn func(client.Event)) *subscription {
	s := &subscription{fn: fn, done: make(chan struct{}), wake: make(chan struct{}, 1)}
	go s.run() // ends with end
	return s
}

func (s *subscription) push(e client.Event) {
	s.mu.Lock()
	s.queue = append(s.queue, e)
	s.mu.Unlock()
	s.signal()
}

func (s *subscription) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *subscription) run() {
	defer close(s.done)
	for range s.wake {
		for {
			s.mu.Lock()
			if s.ended {
				s.mu.Unlock()
				return
			}
			batch := s.queue
			s.queue = nil
			s.mu.Unlock()
			if len(batch) == 0 {
				break
			}
			for _, e := range batch {
				if s.over() {
					return
				}
				s.fn(e)
			}
		}
	}
}

func (s *subscription) over() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}

// end returns when fn runs no more.
func (s *subscription) end() {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.signal()
	<-s.done
}

// quiet lowers what client-go logs to the debug level: it takes every break of a
// connection for an error, while the next attempt mends it.
type quiet struct{ slog.Handler }

// Enabled implements slog.Handler.
func (q quiet) Enabled(ctx context.Context, _ slog.Level) bool {
	return q.Handler.Enabled(ctx, slog.LevelDebug)
}

// Handle implements slog.Handler.
func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	return q.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (q quiet) WithAttrs(a []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(a)} }

// WithGroup implements slog.Handler.
func (q quiet) WithGroup(name string) slog.Handler { return quiet{q.Handler.WithGroup(name)} }
