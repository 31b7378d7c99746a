package crd_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/apiserver/apitest"
)

// Who owns what after a series of writes does not depend on the writes that the
// server has seen before, although it remembers their outcomes.
func TestOwnershipIsRemembered(t *testing.T) {
	const rounds, writes = 12, 12
	warm := start(t, apitest.Options{})
	warm.establish(t, definition(t, schemas))
	for round := range uint64(rounds) {
		cold := start(t, apitest.Options{})
		cold.establish(t, definition(t, schemas))
		a, b := series(t, warm, round, writes, "a"), series(t, cold, round, writes, "b")
		if a != b {
			t.Errorf("seed %d:\nwarm %s\ncold %s", round, a, b)
		}
	}
}

// series makes an object, changes it at random and returns its managed fields;
// salt goes into values that decide nothing.
func series(t *testing.T, c *cluster, seed uint64, writes int, salt string) string {
	t.Helper()
	rnd := rand.New(rand.NewPCG(seed, 1))
	foos, ctx := c.foos("v1"), t.Context()
	name := fmt.Sprint("o", seed)
	obj, err := foos.Create(ctx, foo(t, "v1", name, "spec: {free: {s: "+salt+"}}"), metav1.CreateOptions{FieldManager: "m0"})
	if err != nil {
		t.Fatal(err)
	}
	for i := range writes {
		spec := map[string]any{"free": map[string]any{"s": salt, fmt.Sprint("k", rnd.IntN(3)): map[string]any{"x": salt}}}
		if n := rnd.IntN(3); n > 0 {
			spec["replicas"] = int64(n)
		}
		if rnd.IntN(2) == 0 {
			spec["note"] = salt + fmt.Sprint(rnd.IntN(2))
		} else if rnd.IntN(2) == 0 {
			spec["note"] = nil
		}
		if n := rnd.IntN(4); n > 0 {
			var ports []any
			for p := range n {
				ports = append(ports, map[string]any{"port": int64(p + rnd.IntN(2)*10), "protocol": []string{"TCP", "UDP"}[rnd.IntN(2)]})
			}
			spec["ports"] = ports
		}
		if rnd.IntN(2) == 0 {
			spec["set"] = []any{fmt.Sprint("e", rnd.IntN(2)), "z"}
		}
		obj.Object["spec"] = spec
		obj.SetLabels(map[string]string{fmt.Sprint("l", rnd.IntN(2)): salt})
		if obj, err = foos.Update(ctx, obj, metav1.UpdateOptions{FieldManager: fmt.Sprint("m", rnd.IntN(3))}); err != nil {
			t.Fatalf("write %d of seed %d: %v", i, seed, err)
		}
	}
	var entries []string // in an order of their own: the API's goes by the second of each write
	for _, e := range obj.GetManagedFields() {
		entries = append(entries, fmt.Sprintln(e.Manager, e.Operation, string(e.FieldsV1.Raw)))
	}
	slices.Sort(entries)
	return strings.Join(entries, "")
}
