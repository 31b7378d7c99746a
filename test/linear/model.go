// Package linear tests that knarr's API is linearizable, and that its watches miss
// and repeat nothing, while the real binary is killed and started again.
//
// Clients write and read a few objects; what they asked and were told is a history,
// which must be explained by some order of the requests, each taking effect in one
// moment between its start and its answer. A request without an answer may have
// taken effect or not.
package linear

import (
	"fmt"
	"math"

	"github.com/anishathalye/porcupine"
)

type verb int

const (
	create verb = iota
	update      // with the resourceVersion of an earlier answer
	remove
	read // a get, or what a list says of the object
)

func (v verb) String() string { return [...]string{"create", "update", "delete", "read"}[v] }

// request is what was asked of one object.
type request struct {
	verb  verb
	key   string
	value string // written; each is written by one request only
	old   int64  // the revision that an update names
}

type outcome int

const (
	done     outcome = iota
	refused          // already exists, or conflict
	absent           // not found
	unknown          // no answer
	untaken          // never sent: no part of the history
	breaking         // an answer that no order explains
)

// answer is what was told.
type answer struct {
	outcome  outcome
	value    string // of a read
	revision int64  // of what was read or written
}

// object is the state of one object.
type object struct {
	present  bool
	value    string
	revision int64 // 0: not told yet, as the writer had no answer
}

// model says which answers are right.
var model = porcupine.Model{
	Init: func() any { return object{} },
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		index := map[string]int{}
		var out [][]porcupine.Operation
		for _, op := range history {
			key := op.Input.(request).key
			i, ok := index[key]
			if !ok {
				i = len(out)
				index[key] = i
				out = append(out, nil)
			}
			out[i] = append(out[i], op)
		}
		return out
	},
	Step: func(state, in, out any) (bool, any) {
		ok, next := step(state.(object), in.(request), out.(answer))
		return ok, next
	},
	DescribeOperation: func(in, out any) string { return fmt.Sprintf("%+v: %+v", in, out) },
	DescribeState:     func(state any) string { return fmt.Sprintf("%+v", state) },
}

// step is one request in one moment: whether the answer is right, and the state
// after. A request without answer does what it can: one that never took effect is
// put behind the end.
func step(now object, r request, a answer) (bool, object) {
	same := now.revision == 0 || r.old == 0 || now.revision == r.old
	written := object{present: true, value: r.value, revision: a.revision}
	switch {
	case a.outcome == breaking:
		return false, now
	case r.verb == read && a.outcome == absent:
		return !now.present, now
	case r.verb == read:
		known := now.revision == 0 || now.revision == a.revision
		return now.present && now.value == a.value && known, object{true, a.value, a.revision}
	case a.outcome == unknown:
		switch {
		case r.verb == create && !now.present, r.verb == update && now.present && same:
			return true, written
		case r.verb == remove:
			return true, object{}
		}
		return true, now
	case a.outcome == absent:
		return r.verb != create && !now.present, now
	case a.outcome == refused && r.verb == create:
		return now.present, now
	case a.outcome == refused: // an update of another revision
		return now.present && (now.revision == 0 || now.revision != r.old), now
	case r.verb == create:
		return !now.present, written
	case r.verb == update:
		return now.present && same && a.revision > now.revision, written
	default:
		return now.present, object{}
	}
}

// never is the time of an answer that did not come.
const never = math.MaxInt64
