package pod

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"golang.org/x/sync/semaphore"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/agent/grant"
	"knarr.dev/knarr/agent/images"
	"knarr.dev/knarr/agent/metrics"
	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/agent/status"
	"knarr.dev/knarr/agent/userns"
	"knarr.dev/knarr/agent/volumes"
	"knarr.dev/knarr/client"
	"knarr.dev/knarr/cri"
)

// Drainer takes a terminating pod out of the data path: see agent.Drainer.
type Drainer interface {
	Drain(ctx context.Context, pod *corev1.Pod) error
}

// Groups keeps pods' control groups: see agent.Groups.
type Groups interface {
	Apply(path string, r *runtimeapi.LinuxContainerResources) error
	Remove(ctx context.Context, path string) error
}

// Resources are what the node sets aside for containers: see package resources.
type Resources interface {
	// Grant is what a container is to have that is about to be made.
	Grant(ctx context.Context, pod *corev1.Pod, container string) (*grant.Grant, error)
	// Health says how the devices of a container fare.
	Health(uid, container string) []corev1.ResourceStatus
	// Alone tells whether a container has CPUs alone, of which it may use all.
	Alone(uid, container string) bool
	// Release takes back what the pod has once nothing of it runs any more.
	Release(uid string) error
}

// Claims prepare what a pod has by ResourceClaims: see package dra.
type Claims interface {
	Prepare(ctx context.Context, pod *corev1.Pod) error
	// Grant is what a container is to have of what is prepared.
	Grant(pod *corev1.Pod, container string) *grant.Grant
	// Release undoes what is prepared for a pod of which nothing runs any more.
	Release(ctx context.Context, uid string) error
}

// Deps are what actors share.
type Deps struct {
	Client         client.Interface
	CRI            *cri.Client
	Recorder       client.Recorder
	Images         *images.Manager
	Volumes        *volumes.Manager
	Objects        volumes.Objects
	Services       func(namespace string) []*corev1.Service
	LogRoot        string
	LogLinks       string // folder of links to all logs; empty: none
	CgroupRoot     string
	PodPids        int64 // how many tasks a pod may have; 0 or -1: no limit of its own
	NodeIPs        []string
	ClusterDNS     []netip.Addr
	ClusterDomain  string
	ResolvConf     string // file with the node's resolvers; empty: podspec.ReadResolvConf chooses
	Memory         int64  // of the node, bytes
	Swap           podspec.Swap
	SeccompDefault bool                  // who names no seccomp profile has the runtime's
	EndTogether    bool                  // the kernel ends all processes of a container that is out of memory
	HugePages      []corev1.ResourceName // the sizes that the node has
	Allocatable    func() corev1.ResourceList
	Drainer        Drainer        // nil: none
	Groups         Groups         // nil: the runtime keeps them
	Users          *userns.Holder // nil: pods cannot have user namespaces
	Resources      Resources      // nil: the node sets nothing aside
	Claims         Claims         // nil: pods cannot have ResourceClaims
	// Admit refuses a pod that must not run here; nil result admits.
	Admit func(*corev1.Pod) *status.Terminal
	// Resizable says why the node has no room for the pod as it is wanted now; nil:
	// it has.
	Resizable func(*corev1.Pod) *status.Waiting
	// MaxRestart bounds the back-off of containers that end again and again.
	MaxRestart time.Duration
	Metrics    *metrics.Metrics // nil: nothing is counted
	// Removing bounds how many pods are removed from the node at a time: nobody waits for
	// that, but others wait for the CPUs that it takes. nil: it is not bounded.
	Removing *semaphore.Weighted
	Clock    clock.WithDelayedExecution
	Log      *slog.Logger
}

// alone tells whether a container of the pod has CPUs alone.
func (d *Deps) alone(pod *corev1.Pod) func(container string) bool {
	if d.Resources == nil {
		return func(string) bool { return false }
	}
	return func(container string) bool { return d.Resources.Alone(string(pod.UID), container) }
}
