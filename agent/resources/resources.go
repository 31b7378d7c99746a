// Package resources has the node's managers of exclusive resources work together:
// when a pod is admitted, each says where it could take its part from, package
// topology finds what suits all, and each sets its part aside. What they set aside
// survives restarts and is given back when nothing of the pod runs any more.
package resources

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"knarr.dev/knarr/agent/grant"
	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/agent/topology"
)

// Holder is a manager of one kind of resource.
type Holder interface {
	topology.Provider
	// Grant is what a container is to have that is about to be made.
	Grant(ctx context.Context, uid, container string) (*grant.Grant, error)
	// Release takes back what a pod holds; Keep what all pods but those hold. Both may
	// be repeated.
	Release(uid string) error
	Keep(pods map[string]bool) error
}

// Refusal is an error that has a reason of its own.
type Refusal interface {
	error
	Reason() string
}

// Manager is all of a node's holders. Make one with New.
type Manager struct {
	policy   topology.Config
	nodes    topology.Mask
	distance func(a, b int) int
	holders  []Holder
}

// New returns a manager; nodes are the machine's NUMA nodes.
func New(policy topology.Config, nodes topology.Mask, distance func(a, b int) int, holders ...Holder) *Manager {
	return &Manager{policy: policy, nodes: nodes, distance: distance, holders: holders}
}

// Admit sets aside what a pod needs, or says why that cannot be: a reason and a
// message, empty if it can.
func (m *Manager) Admit(pod *corev1.Pod) (reason, message string) {
	var pooled topology.Hint
	perPod := m.policy.Scope == topology.ScopePod
	if perPod {
		h, ok := m.merge(pod, nil)
		if !ok {
			return m.affinityError(pod)
		}
		pooled = h
	}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			c := &list[i]
			h := pooled
			if !perPod {
				var ok bool
				if h, ok = m.merge(pod, c); !ok {
					return m.affinityError(pod)
				}
			}
			for _, holder := range m.holders {
				if err := holder.Allocate(pod, c, h.Nodes); err != nil {
					return m.refused(pod, err)
				}
			}
		}
	}
	return "", ""
}

func (m *Manager) merge(pod *corev1.Pod, c *corev1.Container) (topology.Hint, bool) {
	if m.policy.Policy == "" || m.policy.Policy == topology.None {
		return topology.Hint{}, true
	}
	var hints []map[string][]topology.Hint
	for _, h := range m.holders {
		hints = append(hints, h.Hints(pod, c))
	}
	return m.policy.Merge(hints, m.nodes, m.distance)
}

func (m *Manager) affinityError(pod *corev1.Pod) (string, string) {
	_ = m.Release(string(pod.UID)) // what cannot be noted is freed when the pod is
	return "TopologyAffinityError", "Pod was rejected: Resources cannot be allocated with Topology locality"
}

func (m *Manager) refused(pod *corev1.Pod, err error) (string, string) {
	_ = m.Release(string(pod.UID))
	var r Refusal
	if errors.As(err, &r) {
		return r.Reason(), "Pod was rejected: " + err.Error()
	}
	return "UnexpectedAdmissionError", fmt.Sprintf("Pod was rejected: Allocate failed due to %v, which is unexpected", err)
}

// Grant is what a container is to have that is about to be made.
func (m *Manager) Grant(ctx context.Context, pod *corev1.Pod, container string) (*grant.Grant, error) {
	if podspec.ContainerKind(pod, container) == "ephemeral_container" {
		return &grant.Grant{}, nil
	}
	all := &grant.Grant{Annotations: map[string]string{}}
	for _, h := range m.holders {
		g, err := h.Grant(ctx, string(pod.UID), container)
		if err != nil {
			return nil, err
		}
		all.Add(g)
	}
	return all, nil
}

// Alone tells whether a container has CPUs alone.
func (m *Manager) Alone(uid, container string) bool {
	return slices.ContainsFunc(m.holders, func(h Holder) bool {
		a, ok := h.(interface {
			Alone(uid, container string) bool
		})
		return ok && a.Alone(uid, container)
	})
}

// Health says how the devices of a container fare.
func (m *Manager) Health(uid, container string) []corev1.ResourceStatus {
	var out []corev1.ResourceStatus
	for _, h := range m.holders {
		if reporter, ok := h.(interface {
			Health(uid, container string) []corev1.ResourceStatus
		}); ok {
			out = append(out, reporter.Health(uid, container)...)
		}
	}
	return out
}

// Release takes back what a pod holds. It may be repeated.
func (m *Manager) Release(uid string) error {
	var errs []error
	for _, h := range m.holders {
		errs = append(errs, h.Release(uid))
	}
	return errors.Join(errs...)
}

// Keep takes back what pods hold that are not among those.
func (m *Manager) Keep(pods map[string]bool) error {
	var errs []error
	for _, h := range m.holders {
		errs = append(errs, h.Keep(pods))
	}
	return errors.Join(errs...)
}
