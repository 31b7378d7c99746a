package linear

import (
	"testing"

	"github.com/anishathalye/porcupine"
)

// TestModel: the checker finds what it is there for.
func TestModel(t *testing.T) {
	op := func(from, to int64, r request, a answer) porcupine.Operation {
		return porcupine.Operation{Input: r, Output: a, Call: from, Return: to}
	}
	made := op(0, 1, request{verb: create, key: "k", value: "a"}, answer{revision: 5})
	for name, c := range map[string]struct {
		ops []porcupine.Operation
		ok  bool
	}{
		"a read of the write":                {[]porcupine.Operation{made, op(2, 3, request{verb: read, key: "k"}, answer{value: "a", revision: 5})}, true},
		"a lost write":                       {[]porcupine.Operation{made, op(2, 3, request{verb: read, key: "k"}, answer{outcome: absent})}, false},
		"another revision":                   {[]porcupine.Operation{made, op(2, 3, request{verb: read, key: "k"}, answer{value: "a", revision: 6})}, false},
		"two creates of one":                 {[]porcupine.Operation{made, op(2, 3, request{verb: create, key: "k", value: "b"}, answer{revision: 6})}, false},
		"an update of an old revision":       {[]porcupine.Operation{made, op(2, 3, request{verb: update, key: "k", value: "b", old: 4}, answer{revision: 6})}, false},
		"a stale read":                       {[]porcupine.Operation{made, op(2, 3, request{verb: update, key: "k", value: "b", old: 5}, answer{revision: 6}), op(4, 5, request{verb: read, key: "k"}, answer{value: "a", revision: 5})}, false},
		"a write without answer happened":    {[]porcupine.Operation{made, op(2, never, request{verb: update, key: "k", value: "b", old: 5}, answer{outcome: unknown}), op(4, 5, request{verb: read, key: "k"}, answer{value: "b", revision: 6})}, true},
		"a write without answer did not":     {[]porcupine.Operation{made, op(2, never, request{verb: remove, key: "k"}, answer{outcome: unknown}), op(4, 5, request{verb: read, key: "k"}, answer{value: "a", revision: 5})}, true},
		"a write without answer is undone":   {[]porcupine.Operation{made, op(2, never, request{verb: update, key: "k", value: "b", old: 5}, answer{outcome: unknown}), op(4, 5, request{verb: read, key: "k"}, answer{value: "b", revision: 6}), op(6, 7, request{verb: read, key: "k"}, answer{value: "a", revision: 5})}, false},
		"a conflict where there is no cause": {[]porcupine.Operation{made, op(2, 3, request{verb: update, key: "k", value: "b", old: 5}, answer{outcome: refused})}, false},
	} {
		if got := porcupine.CheckOperations(model, c.ops); got != c.ok {
			t.Errorf("%s: linearizable %v, want %v", name, got, c.ok)
		}
	}
}
