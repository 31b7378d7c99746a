package topology

import (
	"slices"
	"testing"
)

func h(preferred bool, nodes ...int) Hint { return Hint{Of(nodes...), preferred} }

func TestMerge(t *testing.T) {
	two := Of(0, 1)
	four := Of(0, 1, 2, 3)
	for _, tc := range []struct {
		name   string
		policy Config
		nodes  Mask
		hints  []map[string][]Hint
		want   Hint
		admit  bool
	}{
		{"none admits everything", Config{Policy: None}, two, []map[string][]Hint{{"cpu": {}}}, Hint{}, true},
		{"nothing matters", Config{Policy: Restricted}, two, []map[string][]Hint{{}, nil}, h(true, 0, 1), true},
		{"one node suits both", Config{Policy: Restricted}, two, []map[string][]Hint{{"cpu": {h(true, 0), h(true, 1), h(false, 0, 1)}}, {"gpu": {h(true, 1), h(false, 0, 1)}}}, h(true, 1), true},
		{"restricted refuses what is not preferred", Config{Policy: Restricted}, two, []map[string][]Hint{{"cpu": {h(true, 0), h(false, 0, 1)}}, {"gpu": {h(true, 1), h(false, 0, 1)}}}, h(false, 0), false},
		{"best effort takes it", Config{Policy: BestEffort}, two, []map[string][]Hint{{"cpu": {h(true, 0), h(false, 0, 1)}}, {"gpu": {h(true, 1), h(false, 0, 1)}}}, h(false, 0), true},
		{"restricted admits two nodes if both need two", Config{Policy: Restricted}, two, []map[string][]Hint{{"cpu": {h(true, 0, 1)}}, {"gpu": {h(true, 0, 1)}}}, h(true, 0, 1), true},
		{"single node does not", Config{Policy: SingleNUMANode}, two, []map[string][]Hint{{"cpu": {h(true, 0, 1)}}}, Hint{}, false},
		{"single node", Config{Policy: SingleNUMANode}, two, []map[string][]Hint{{"cpu": {h(true, 1), h(false, 0, 1)}, "memory": {h(true, 0), h(true, 1)}}}, h(true, 1), true},
		{"single node where nothing matters", Config{Policy: SingleNUMANode}, two, []map[string][]Hint{{"cpu": nil}}, Hint{Preferred: true}, true},
		{"impossible", Config{Policy: BestEffort}, two, []map[string][]Hint{{"gpu": {}}}, h(false, 0, 1), true},
		{"impossible, restricted", Config{Policy: Restricted}, two, []map[string][]Hint{{"gpu": {}}, {"cpu": {h(true, 0)}}}, h(false, 0), false},
		{"does not matter but preferred", Config{Policy: SingleNUMANode}, two, []map[string][]Hint{{"x": {{Preferred: true}}}, {"cpu": {h(true, 0)}}}, h(true, 0), true},
		{"not preferred: as many as the largest needs", Config{Policy: BestEffort}, four, []map[string][]Hint{
			{"cpu": {h(true, 0, 1), h(false, 0, 1, 2), h(false, 0, 1, 2, 3)}}, {"gpu": {h(true, 3), h(false, 0, 1, 3), h(false, 0, 3)}}}, h(false, 0, 1), true},
	} {
		got, admit := tc.policy.Merge(tc.hints, tc.nodes, nil)
		if got != tc.want || admit != tc.admit {
			t.Errorf("%s: %+v %v, want %+v %v", tc.name, got, admit, tc.want, tc.admit)
		}
	}
}

func TestClosestNodes(t *testing.T) {
	c := Config{Policy: BestEffort, Options: map[string]string{PreferClosest: "true"}}
	hints := []map[string][]Hint{{"cpu": {h(true, 0, 1), h(true, 0, 3), h(true, 2, 3)}}}
	distance := func(a, b int) int {
		switch {
		case a == b:
			return 10
		case a+b == 3: // 0-3, 1-2
			return 11
		}
		return 21
	}
	if got, _ := c.Merge(hints, Of(0, 1, 2, 3), distance); got != h(true, 0, 3) {
		t.Errorf("%+v", got)
	}
	c.Options = nil
	if got, _ := c.Merge(hints, Of(0, 1, 2, 3), distance); got != h(true, 0, 1) {
		t.Errorf("%+v", got)
	}
}

func TestSubsetsInOrder(t *testing.T) {
	var got []string
	Subsets(Of(0, 2, 3), func(m Mask) { got = append(got, m.String()) })
	if want := []string{"0", "2", "3", "0,2", "0,3", "2,3", "0,2,3"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

func TestConfigIsChecked(t *testing.T) {
	for _, c := range []Config{{Policy: "x"}, {Scope: "x"}, {Options: map[string]string{"x": "1"}}, {Options: map[string]string{PreferClosest: "maybe"}}, {Options: map[string]string{MaxNodes: "1"}}} {
		if c.Validate() == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
	if err := (Config{Policy: Restricted, Scope: ScopePod, Options: map[string]string{PreferClosest: "true", MaxNodes: "16"}}).Validate(); err != nil {
		t.Error(err)
	}
}
