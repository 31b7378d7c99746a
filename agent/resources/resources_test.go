package resources

import (
	"context"
	"errors"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/agent/grant"
	"knarr.dev/knarr/agent/topology"
)

// holder gives what it is told to, and notes what it was asked.
type holder struct {
	name  string
	hints map[string][]topology.Hint // of every container; of the whole pod as well
	fail  error
	calls []string
	alone string
}

func (h *holder) Hints(_ *corev1.Pod, c *corev1.Container) map[string][]topology.Hint {
	h.calls = append(h.calls, "hints "+nameOf(c))
	return h.hints
}

func (h *holder) Allocate(_ *corev1.Pod, c *corev1.Container, affinity topology.Mask) error {
	h.calls = append(h.calls, "allocate "+nameOf(c)+" from "+affinity.String())
	return h.fail
}

func (h *holder) Grant(_ context.Context, _, container string) (*grant.Grant, error) {
	return &grant.Grant{CPUs: h.name, Envs: []*runtimeapi.KeyValue{{Key: h.name}}}, h.fail
}

func (h *holder) Release(uid string) error {
	h.calls = append(h.calls, "release "+uid)
	return nil
}

func (h *holder) Keep(pods map[string]bool) error { return h.fail }

func (h *holder) Alone(_, container string) bool { return container == h.alone }

func nameOf(c *corev1.Container) string {
	if c == nil {
		return "all"
	}
	return c.Name
}

type refused struct{ error }

func (refused) Reason() string { return "OwnReason" }

func pod() *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "u"}, Spec: corev1.PodSpec{InitContainers: []corev1.Container{{Name: "i"}}, Containers: []corev1.Container{{Name: "a"}, {Name: "b"}},
		EphemeralContainers: []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "e"}}}}}
}

func TestHowPodsAreAdmitted(t *testing.T) {
	second := map[string][]topology.Hint{"x": {{Nodes: topology.Of(1), Preferred: true}}}
	for _, tc := range []struct {
		name            string
		policy          topology.Config
		hints           map[string][]topology.Hint
		fail            error
		reason, message string
		calls           []string
	}{
		{"without a policy nobody is asked", topology.Config{}, second, nil, "", "", []string{"allocate i from ", "allocate a from ", "allocate b from "}},
		{"each container by itself", topology.Config{Policy: topology.Restricted}, second, nil, "", "",
			[]string{"hints i", "allocate i from 1", "hints a", "allocate a from 1", "hints b", "allocate b from 1"}},
		{"the pod as a whole", topology.Config{Policy: topology.Restricted, Scope: topology.ScopePod}, second, nil, "", "",
			[]string{"hints all", "allocate i from 1", "allocate a from 1", "allocate b from 1"}},
		{"no nodes suffice", topology.Config{Policy: topology.Restricted}, map[string][]topology.Hint{"x": {}}, nil,
			"TopologyAffinityError", "Pod was rejected: Resources cannot be allocated with Topology locality", []string{"hints i", "release u"}},
		{"nothing is left", topology.Config{}, nil, errors.New("no more"),
			"UnexpectedAdmissionError", "Pod was rejected: Allocate failed due to no more, which is unexpected", []string{"allocate i from ", "release u"}},
		{"a reason of its own", topology.Config{}, nil, refused{errors.New("so there")}, "OwnReason", "Pod was rejected: so there", []string{"allocate i from ", "release u"}},
	} {
		h := &holder{hints: tc.hints, fail: tc.fail}
		reason, message := New(tc.policy, topology.Of(0, 1), nil, h).Admit(pod())
		if reason != tc.reason || message != tc.message || !slices.Equal(h.calls, tc.calls) {
			t.Errorf("%s: %s: %s after %q", tc.name, reason, message, h.calls)
		}
	}
}

func TestGrantsAreJoined(t *testing.T) {
	first, second := &holder{name: "0"}, &holder{name: "1", alone: "a"}
	m := New(topology.Config{}, 1, nil, first, second)
	g, err := m.Grant(t.Context(), pod(), "a")
	if err != nil || g.CPUs != "1" || len(g.Envs) != 2 {
		t.Errorf("%+v, %v", g, err)
	}
	if g, err := m.Grant(t.Context(), pod(), "e"); err != nil || g.CPUs != "" || len(g.Envs) != 0 {
		t.Errorf("an ephemeral container: %+v, %v", g, err)
	}
	if !m.Alone("u", "a") || m.Alone("u", "b") {
		t.Error("who has CPUs alone")
	}
	second.fail = errors.New("broken")
	if _, err := m.Grant(t.Context(), pod(), "a"); err == nil {
		t.Error("a holder's error was lost")
	}
	if err := m.Keep(nil); err == nil {
		t.Error("a holder's error was lost")
	}
	if err := m.Release("u"); err != nil || first.calls[0] != "release u" || second.calls[0] != "release u" {
		t.Errorf("%q, %q, %v", first.calls, second.calls, err)
	}
}
