package flow

import (
	"hash/fnv"
	"io"
	"math"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"

	"knarr.dev/knarr/apiserver/auth"
)

// seating knows which seats are taken. It is data and arithmetic: its owner holds
// a lock around each call.
//
// reserved is the sum over all levels of what they use or keep for themselves,
// whichever is more. It never exceeds total by what is borrowed, so that a level
// always has the seats that it does not lend.
type seating struct {
	total    int
	reserved int
	levels   []*level
	waiting  int
}

// level is a priority level.
type level struct {
	name   string
	exempt bool

	nominal int // its share of all seats
	keeps   int // what it never lends
	most    int // what it may use with what it borrows

	queues     []queue // nil: there is no waiting
	hand       int     // how many queues a flow may use
	queueLimit int

	inUse, executing int // seats, requests
	waiting          int // requests
	clock            float64
}

// queue is one of a level's queues.
type queue struct {
	waiters []*waiter
	load    int     // seats of those that wait and of those that it has sent
	finish  float64 // virtual time at which all that came so far would be done
}

// waiter is a request that waits.
type waiter struct {
	level       *level
	queue, from *queue // queue is nil as soon as the seats are granted
	seats       int
	start       float64
	granted     chan struct{}
}

// fits tells whether a level may have this many more seats.
func (s *seating) fits(l *level, seats int) bool {
	after := l.inUse + seats
	return after <= l.most && (after <= l.keeps || s.reserved-max(l.inUse, l.keeps)+after <= s.total)
}

func (s *seating) take(l *level, seats int) {
	s.reserved -= max(l.inUse, l.keeps)
	l.inUse += seats
	l.executing++
	s.reserved += max(l.inUse, l.keeps)
}

// release gives back seats and lets others have them.
func (s *seating) release(l *level, q *queue, seats int) {
	s.reserved -= max(l.inUse, l.keeps)
	l.inUse -= seats
	l.executing--
	s.reserved += max(l.inUse, l.keeps)
	if q != nil {
		q.load -= seats
	}
	if s.waiting > 0 {
		s.dispatch(l)
		s.dispatchOthers()
	}
}

func (s *seating) enqueue(l *level, q *queue, seats int) *waiter {
	w := &waiter{level: l, queue: q, from: q, seats: seats, granted: make(chan struct{})}
	w.start = max(l.clock, q.finish)
	q.finish = w.start + float64(seats)
	q.load += seats
	q.waiters = append(q.waiters, w)
	l.waiting++
	s.waiting++
	return w
}

// leave takes a waiter out of its queue; false if it has got its seats already.
func (s *seating) leave(w *waiter) bool {
	if w.queue == nil {
		return false
	}
	for i, x := range w.queue.waiters {
		if x == w {
			w.queue.waiters = append(w.queue.waiters[:i], w.queue.waiters[i+1:]...)
			break
		}
	}
	w.queue.load -= w.seats
	w.queue = nil
	w.level.waiting--
	s.waiting--
	return true
}

// dispatch seats those of a level that fit, the one with the earliest virtual
// start first: that is what each flow would get if all were served bit by bit in
// turn.
func (s *seating) dispatch(l *level) {
	for l.waiting > 0 {
		var next *queue
		for i := range l.queues {
			q := &l.queues[i]
			if len(q.waiters) > 0 && (next == nil || q.waiters[0].start < next.waiters[0].start) {
				next = q
			}
		}
		w := next.waiters[0]
		if !s.fits(l, w.seats) {
			return
		}
		next.waiters = next.waiters[1:]
		l.clock = max(l.clock, w.start)
		l.waiting--
		s.waiting--
		w.queue = nil
		s.take(l, w.seats)
		close(w.granted)
	}
}

// dispatchOthers seats those of levels that may now borrow, the least served first.
func (s *seating) dispatchOthers() {
	tried := map[*level]bool{}
	for s.waiting > 0 {
		var next *level
		least := math.Inf(1)
		for _, l := range s.levels {
			if used := float64(l.inUse) / float64(max(1, l.nominal)); l.waiting > 0 && !tried[l] && used < least {
				next, least = l, used
			}
		}
		if next == nil {
			return
		}
		tried[next] = true
		s.dispatch(next)
	}
}

// choose returns the least loaded queue of a flow's hand.
func (l *level) choose(hash uint64) *queue {
	var buf [64]int
	hand := deal(hash, len(l.queues), min(l.hand, len(l.queues)), buf[:0])
	best := &l.queues[hand[0]]
	for _, i := range hand[1:] {
		if l.queues[i].load < best.load {
			best = &l.queues[i]
		}
	}
	return best
}

// deal draws size different numbers below n, decided by the hash alone, in
// ascending order.
func deal(hash uint64, n, size int, hand []int) []int {
	for i := range size {
		left := uint64(n - i)
		card := int(hash % left)
		hash /= left
		at := 0
		for at < len(hand) && hand[at] <= card {
			card++ // those below that are drawn already are passed over
			at++
		}
		hand = append(hand, 0)
		copy(hand[at+1:], hand[at:])
		hand[at] = card
	}
	return hand
}

// flowHash tells flows apart.
func flowHash(class *Class, a *auth.Action) uint64 {
	h := fnv.New64a()
	_, _ = io.WriteString(h, class.Schema) // a hash takes everything
	_, _ = h.Write([]byte{0})
	switch class.by {
	case flowcontrolv1.FlowDistinguisherMethodByUserType:
		_, _ = io.WriteString(h, a.User.Username)
	case flowcontrolv1.FlowDistinguisherMethodByNamespaceType:
		_, _ = io.WriteString(h, a.Namespace)
	}
	return h.Sum64()
}
