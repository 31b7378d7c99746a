package flow

import (
	"slices"
	"testing"
)

func waiting(w *waiter) bool {
	select {
	case <-w.granted:
		return false
	default:
		return true
	}
}

func newLevel(name string, nominal, keeps, most, queues int) *level {
	return &level{name: name, nominal: nominal, keeps: keeps, most: most, queues: make([]queue, queues), hand: 1, queueLimit: 1000}
}

func seatsOf(levels ...*level) *seating {
	s := &seating{levels: levels}
	for _, l := range levels {
		s.total += l.nominal
		s.reserved += l.keeps
	}
	return s
}

// TestNobodyStarves: a flow with 200 requests does not hold up another that comes
// later with five: of each two seats that become free, one is the other's.
func TestNobodyStarves(t *testing.T) {
	l := newLevel("l", 10, 10, 10, 2)
	s := seatsOf(l)
	elephant, mouse := &l.queues[0], &l.queues[1]
	var served []*waiter
	for range 200 {
		served = append(served, s.enqueue(l, elephant, 1))
		s.dispatch(l)
	}
	if l.inUse != 10 || l.waiting != 190 {
		t.Fatalf("%d seats in use, %d wait; want 10 and 190", l.inUse, l.waiting)
	}
	var mice []*waiter
	for range 5 {
		mice = append(mice, s.enqueue(l, mouse, 1))
	}
	for range 11 {
		s.release(l, elephant, 1)
	}
	if i := slices.IndexFunc(mice, waiting); i >= 0 {
		t.Errorf("after eleven seats became free, request %d of the small flow still waits", i)
	}
	n := 0
	for _, w := range served {
		if !waiting(w) {
			n++
		}
	}
	if n != 10+6 {
		t.Errorf("%d requests of the large flow were served, want 16: no seat may stay free", n)
	}
}

// TestBorrowing: idle seats are lent, and what a level keeps it always has.
func TestBorrowing(t *testing.T) {
	a, b := newLevel("a", 10, 5, 20, 1), newLevel("b", 10, 10, 20, 1)
	s := seatsOf(a, b)
	n := 0
	for s.fits(b, 1) {
		s.take(b, 1)
		n++
	}
	if n != 15 {
		t.Errorf("b got %d seats, want its own 10 and the 5 that a lends", n)
	}
	n = 0
	for s.fits(a, 1) {
		s.take(a, 1)
		n++
	}
	if n != 5 {
		t.Errorf("a got %d seats, want the 5 that it keeps", n)
	}
	w := s.enqueue(a, &a.queues[0], 1)
	s.release(b, nil, 1)
	if waiting(w) {
		t.Error("a seat that b gives back does not reach a")
	}
}

func TestLeave(t *testing.T) {
	l := newLevel("l", 1, 1, 1, 1)
	s := seatsOf(l)
	q := &l.queues[0]
	s.take(l, 1)
	first, second := s.enqueue(l, q, 1), s.enqueue(l, q, 1)
	if !s.leave(first) || s.leave(first) {
		t.Error("a waiter leaves once")
	}
	s.release(l, nil, 1)
	if waiting(second) || l.waiting != 0 || s.waiting != 0 {
		t.Error("the next one was not served")
	}
	if s.leave(second) {
		t.Error("who has a seat does not leave the queue")
	}
}

func FuzzDeal(f *testing.F) {
	f.Add(uint64(0), 64, 8)
	f.Add(^uint64(0), 8, 8)
	f.Fuzz(func(t *testing.T, hash uint64, n, size int) {
		if n < 1 || n > 1000 || size < 1 || size > min(n, 20) {
			t.Skip("no hand can be like that")
		}
		hand := deal(hash, n, size, nil)
		if len(hand) != size || !slices.IsSorted(hand) || hand[0] < 0 || hand[size-1] >= n || len(slices.Compact(slices.Clone(hand))) != size {
			t.Errorf("deal(%d, %d, %d) = %v", hash, n, size, hand)
		}
	})
}
