// Package flow shares the server's capacity fairly: API Priority and Fairness of
// flowcontrol.apiserver.k8s.io/v1. Each request belongs to the first FlowSchema
// that matches it, and by that to a priority level with a number of seats. Where
// a level's seats are taken, requests wait in queues, spread by the flow (a user
// or a namespace) they belong to, and are taken fairly from them; what finds its
// queues full is refused.
//
//	request ─classify─> FlowSchema ─> level ─free seat?──yes──────────────> serve
//	                                    │no                                  │
//	                                    └─> shuffle-sharded queues ─dispatch─┘
//	                                         └─ full, or waited too long: 429
//
// A level may borrow the seats that others lend as long as these do not need
// them: whoever asks for a seat within what a level keeps for itself gets one.
package flow

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/apimachinery/pkg/types"

	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/apiserver/registry"
)

// Config is what a Controller is made of.
type Config struct {
	// Registry has the FlowSchemas and the levels.
	Registry *registry.Registry
	// Seats is how many requests are served at once; 0: DefaultSeats.
	Seats int
	// MaxWait is how long a request may wait for a seat; 0: DefaultMaxWait.
	MaxWait time.Duration
	Now     func() time.Time
	Log     *slog.Logger
}

// Defaults of Config, those of kube-apiserver: 400 reading and 200 writing
// requests, and a quarter of the time that a request may take.
const (
	DefaultSeats   = 600
	DefaultMaxWait = 15 * time.Second
)

// Controller gives requests their seats.
type Controller struct {
	cfg     Config
	schemas *registry.Resource
	levels  *registry.Resource
	metrics *metrics

	table atomic.Pointer[table]

	mu    sync.Mutex
	seats seating
	names map[string]*level
}

// New returns a controller that follows the registry's configuration; nil if that
// does not serve it. Run keeps the objects that every cluster has.
func New(cfg Config) *Controller {
	if cfg.Seats == 0 {
		cfg.Seats = DefaultSeats
	}
	if cfg.MaxWait == 0 {
		cfg.MaxWait = DefaultMaxWait
	}
	gv := flowcontrolv1.SchemeGroupVersion
	c := &Controller{cfg: cfg, names: map[string]*level{},
		schemas: cfg.Registry.Resource(gv.WithResource("flowschemas")), levels: cfg.Registry.Resource(gv.WithResource("prioritylevelconfigurations"))}
	if c.schemas == nil || c.levels == nil {
		return nil
	}
	c.metrics = newMetrics(c)
	return c
}

// Class is what a request's FlowSchema says of it.
type Class struct {
	// Schema and Level name the FlowSchema and the priority level.
	Schema, Level string
	// SchemaUID and LevelUID are their UIDs; empty before the objects exist.
	SchemaUID, LevelUID types.UID

	level *level
	by    flowcontrolv1.FlowDistinguisherMethodType
	tally *tally
}

// Exempt tells that the class' requests need no seats.
func (c *Class) Exempt() bool { return c.level.exempt }

// Classify returns the class of a request; every request has one.
func (c *Controller) Classify(a *auth.Action) *Class {
	t := c.current()
	for i := range t.schemas {
		if t.schemas[i].matches(a) {
			return t.schemas[i].class
		}
	}
	return t.schemas[len(t.schemas)-1].class // catch-all, which matches what has a user
}

// Rejected says why a request gets no seat.
type Rejected string

// The reasons, as metrics name them.
const (
	QueueFull        Rejected = "queue-full"
	ConcurrencyLimit Rejected = "concurrency-limit"
	TimeOut          Rejected = "time-out"
	Cancelled        Rejected = "cancelled"
)

// Error implements error.
func (r Rejected) Error() string { return "too many requests: " + string(r) }

// Grant is a number of seats. The zero value is none.
type Grant struct {
	c     *Controller
	level *level
	queue *queue
	seats int
}

// Done gives the seats back; calls after the first do nothing.
func (g *Grant) Done() {
	if g.c == nil {
		return
	}
	c := g.c
	g.c = nil
	c.mu.Lock()
	c.seats.release(g.level, g.queue, g.seats)
	c.mu.Unlock()
}

// Begin takes seats for a request, and waits for them if it must. The error is a
// Rejected.
func (c *Controller) Begin(ctx context.Context, class *Class, a *auth.Action, seats int) (Grant, error) {
	l := class.level
	if l.exempt {
		class.tally.dispatched.Add(1)
		return Grant{}, nil
	}
	c.mu.Lock()
	seats = min(seats, max(1, l.most))
	if l.waiting == 0 && c.seats.fits(l, seats) {
		c.seats.take(l, seats)
		c.mu.Unlock()
		class.tally.dispatched.Add(1)
		return Grant{c: c, level: l, seats: seats}, nil
	}
	if l.queues == nil {
		c.mu.Unlock()
		return c.reject(class, ConcurrencyLimit)
	}
	q := l.choose(flowHash(class, a))
	if len(q.waiters) >= l.queueLimit {
		c.mu.Unlock()
		return c.reject(class, QueueFull)
	}
	w := c.seats.enqueue(l, q, seats)
	c.seats.dispatch(l)
	c.mu.Unlock()
	return c.wait(ctx, class, w)
}

func (c *Controller) reject(class *Class, why Rejected) (Grant, error) {
	class.tally.rejected(why).Add(1)
	return Grant{}, why
}

// wait blocks until the waiter has its seats, or gives up.
func (c *Controller) wait(ctx context.Context, class *Class, w *waiter) (Grant, error) {
	start := c.cfg.Now()
	class.tally.waiting.Add(1)
	defer class.tally.waiting.Add(-1)
	timer := time.NewTimer(c.cfg.MaxWait)
	defer timer.Stop()
	why := TimeOut
	select {
	case <-w.granted:
	case <-ctx.Done():
		why = Cancelled
	case <-timer.C:
	}
	c.mu.Lock()
	seated := w.queue == nil || !c.seats.leave(w)
	c.mu.Unlock()
	g := Grant{c: c, level: w.level, queue: w.from, seats: w.seats}
	c.metrics.waited(class, seated, c.cfg.Now().Sub(start))
	if !seated {
		return c.reject(class, why)
	}
	class.tally.dispatched.Add(1)
	return g, nil
}
