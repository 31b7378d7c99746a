// Package dra prepares the devices of ResourceClaims for the pods that use them:
// https://kubernetes.io/docs/concepts/scheduling-eviction/dynamic-resource-allocation.
// The drivers are plugins that speak k8s.io/kubelet/pkg/apis/dra.
//
//	pod's claims, allocated in the API ──> Prepare ──NodePrepareResources──> driver
//	                                          └─> CDI names ─> Grant ─> runtime
//	last pod of a claim has ended ──────> Release ─NodeUnprepareResources──> driver
//
// What is prepared, and for which pods, is kept in a file, before a driver is asked:
// a killed agent's successor knows what there is to be undone.
package dra

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	draapi "k8s.io/kubelet/pkg/apis/dra/v1"

	"knarr.dev/knarr/agent/checkpoint"
	"knarr.dev/knarr/agent/grant"
	"knarr.dev/knarr/agent/podspec"
)

// answerIn bounds a driver's answers, as with kubelets.
const answerIn = 45 * time.Second

// Config is what a Manager needs.
type Config struct {
	// Claim reads a ResourceClaim from the API.
	Claim func(ctx context.Context, namespace, name string) (*resourceapi.ResourceClaim, error)
	File  string // keeps what is prepared
	Log   *slog.Logger
}

// Manager prepares claims. Make one with New; it is a plugins.Handler.
type Manager struct {
	cfg     Config
	drivers drivers

	busy   sync.Mutex // one claim is prepared or undone at a time
	mu     sync.Mutex
	claims map[types.UID]*Claim
}

// Claim is a claim that is prepared, or is to be, as the file has it. It is replaced,
// never changed.
type Claim struct {
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	Drivers   []string `json:"drivers"` // that were asked
	Pods      []string `json:"pods"`    // UIDs
	// Prepared: all drivers have answered.
	Prepared bool     `json:"prepared"`
	Devices  []Device `json:"devices,omitempty"`
}

// Device is a device of a claim.
type Device struct {
	Driver   string   `json:"driver"`
	Pool     string   `json:"pool"`
	Name     string   `json:"name"`
	Share    *string  `json:"share,omitempty"`
	Requests []string `json:"requests,omitempty"` // none: all of the claim
	CDI      []string `json:"cdi,omitempty"`
}

// New returns a manager that knows what an earlier one has prepared.
func New(cfg Config) (*Manager, error) {
	m := &Manager{cfg: cfg, claims: map[types.UID]*Claim{}}
	if err := checkpoint.Load(cfg.File, &m.claims); err != nil {
		return nil, fmt.Errorf("which claims are prepared: %w: remove the file if no pod of this node uses claims", err)
	}
	return m, nil
}

// set replaces a claim, nil removes it; it is noted on the disk.
func (m *Manager) set(uid types.UID, c *Claim) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	before := m.claims[uid]
	m.claims[uid] = c
	if c == nil {
		delete(m.claims, uid)
	}
	if err := checkpoint.Save(m.cfg.File, m.claims); err != nil {
		m.claims[uid] = before
		if before == nil {
			delete(m.claims, uid)
		}
		return fmt.Errorf("note which claims are prepared: %w", err)
	}
	return nil
}

func (m *Manager) get(uid types.UID) *Claim {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.claims[uid]
}

// nameOf is the name of the ResourceClaim behind a pod's claim; empty: the pod has none,
// as its template says; an error: it is not made yet.
func nameOf(pod *corev1.Pod, c *corev1.PodResourceClaim) (string, error) {
	if c.ResourceClaimName != nil {
		return *c.ResourceClaimName, nil
	}
	for _, s := range pod.Status.ResourceClaimStatuses {
		if s.Name == c.Name {
			if s.ResourceClaimName == nil {
				return "", nil
			}
			return *s.ResourceClaimName, nil
		}
	}
	return "", fmt.Errorf("pod %q: claim %q: the ResourceClaim has not been created from its template yet", pod.Namespace+"/"+pod.Name, c.Name)
}

// Prepare prepares all claims of a pod. It may be repeated; what is prepared is not
// asked for again.
func (m *Manager) Prepare(ctx context.Context, pod *corev1.Pod) error {
	m.busy.Lock()
	defer m.busy.Unlock()
	for i := range pod.Spec.ResourceClaims {
		name, err := nameOf(pod, &pod.Spec.ResourceClaims[i])
		if err != nil {
			return err
		}
		if name == "" {
			continue
		}
		claim, err := m.cfg.Claim(ctx, pod.Namespace, name)
		if err != nil {
			return fmt.Errorf("fetch ResourceClaim %s/%s: %w", pod.Namespace, name, err)
		}
		if err := m.prepare(ctx, pod, claim); err != nil {
			return fmt.Errorf("ResourceClaim %s/%s: %w", pod.Namespace, name, err)
		}
	}
	return nil
}

// check refuses a claim that is not the pod's to use.
func check(pod *corev1.Pod, claim *resourceapi.ResourceClaim) error {
	if claim.Status.Allocation == nil {
		return errors.New("it is not allocated")
	}
	if claim.DeletionTimestamp != nil {
		return errors.New("it is being deleted")
	}
	if !slices.ContainsFunc(claim.Status.ReservedFor, func(r resourceapi.ResourceClaimConsumerReference) bool {
		return r.APIGroup == "" && r.Resource == "pods" && r.UID == pod.UID
	}) {
		return fmt.Errorf("it is not reserved for pod %s (UID %s)", pod.Name, pod.UID)
	}
	return nil
}

func (m *Manager) prepare(ctx context.Context, pod *corev1.Pod, claim *resourceapi.ResourceClaim) error {
	if err := check(pod, claim); err != nil {
		return err
	}
	next := Claim{Namespace: claim.Namespace, Name: claim.Name}
	if have := m.get(claim.UID); have != nil {
		next = *have
	}
	byDriver := map[string]map[[2]string][]string{} // requests by pool and device
	for _, r := range claim.Status.Allocation.Devices.Results {
		if byDriver[r.Driver] == nil {
			byDriver[r.Driver] = map[[2]string][]string{}
		}
		k := [2]string{r.Pool, r.Device}
		byDriver[r.Driver][k] = append(byDriver[r.Driver][k], r.Request)
	}
	names := slices.Sorted(maps.Keys(byDriver))
	changed := false
	if !slices.Contains(next.Pods, string(pod.UID)) {
		next.Pods, changed = append(slices.Clone(next.Pods), string(pod.UID)), true
	}
	if !next.Prepared && !slices.Equal(next.Drivers, names) {
		next.Drivers, changed = names, true
	}
	if changed {
		if err := m.set(claim.UID, &next); err != nil {
			return err
		}
	}
	if next.Prepared {
		return nil
	}
	done := next
	done.Devices = nil
	for _, driver := range names {
		list, err := m.prepareBy(ctx, driver, claim)
		if err != nil {
			return fmt.Errorf("driver %s: %w", driver, err)
		}
		done.Devices = append(done.Devices, list...)
	}
	done.Prepared = true
	return m.set(claim.UID, &done)
}

func (m *Manager) prepareBy(ctx context.Context, driver string, claim *resourceapi.ResourceClaim) ([]Device, error) {
	ctx, cancel := context.WithTimeout(ctx, answerIn)
	defer cancel()
	uid := string(claim.UID)
	resp := &draapi.NodePrepareResourcesResponse{}
	err := m.drivers.call(ctx, driver, "NodePrepareResources", &draapi.NodePrepareResourcesRequest{Claims: []*draapi.Claim{{Namespace: claim.Namespace, Uid: uid, Name: claim.Name}}}, resp)
	if err != nil {
		return nil, fmt.Errorf("NodePrepareResources: %s", status.Convert(err).Message())
	}
	r := resp.Claims[uid]
	if r == nil {
		return nil, errors.New("NodePrepareResources: it did not answer for the claim")
	}
	if r.Error != "" {
		return nil, fmt.Errorf("NodePrepareResources: %s", r.Error)
	}
	var out []Device
	for _, d := range r.Devices {
		out = append(out, Device{Driver: driver, Pool: d.PoolName, Name: d.DeviceName, Share: d.ShareId, Requests: d.RequestNames, CDI: d.CdiDeviceIds})
	}
	return out, nil
}

// Release gives back the claims that a pod has used of which nothing runs any more; a
// claim that no other pod of the node uses is undone. It may be repeated.
func (m *Manager) Release(ctx context.Context, pod string) error {
	return m.release(ctx, func(uid string) bool { return uid == pod })
}

// Keep gives back the claims of all pods that are not among those.
func (m *Manager) Keep(ctx context.Context, pods map[string]bool) error {
	return m.release(ctx, func(uid string) bool { return !pods[uid] })
}

func (m *Manager) release(ctx context.Context, gone func(pod string) bool) error {
	m.mu.Lock()
	var list []types.UID
	for uid, c := range m.claims {
		if slices.ContainsFunc(c.Pods, gone) {
			list = append(list, uid)
		}
	}
	m.mu.Unlock()
	if len(list) == 0 {
		return nil
	}
	m.busy.Lock()
	defer m.busy.Unlock()
	var errs []error
	for _, uid := range list {
		c := m.get(uid)
		if c == nil {
			continue
		}
		next := *c
		next.Pods = slices.DeleteFunc(slices.Clone(c.Pods), gone)
		if len(next.Pods) > 0 {
			errs = append(errs, m.set(uid, &next))
			continue
		}
		err := m.undo(ctx, uid, c)
		if err == nil {
			err = m.set(uid, nil)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (m *Manager) undo(ctx context.Context, uid types.UID, c *Claim) error {
	ctx, cancel := context.WithTimeout(ctx, answerIn)
	defer cancel()
	for _, driver := range c.Drivers {
		resp := &draapi.NodeUnprepareResourcesResponse{}
		err := m.drivers.call(ctx, driver, "NodeUnprepareResources", &draapi.NodeUnprepareResourcesRequest{Claims: []*draapi.Claim{{Namespace: c.Namespace, Uid: string(uid), Name: c.Name}}}, resp)
		if err != nil {
			return fmt.Errorf("ResourceClaim %s/%s: driver %s: NodeUnprepareResources: %s", c.Namespace, c.Name, driver, status.Convert(err).Message())
		}
		r, answered := resp.Claims[string(uid)]
		if !answered {
			return fmt.Errorf("ResourceClaim %s/%s: driver %s: NodeUnprepareResources: it did not answer for the claim", c.Namespace, c.Name, driver)
		}
		if r.GetError() != "" {
			return fmt.Errorf("ResourceClaim %s/%s: driver %s: NodeUnprepareResources: %s", c.Namespace, c.Name, driver, r.GetError())
		}
	}
	return nil
}

// Used is what a container has of one claim.
type Used struct {
	Namespace, Name string
	Devices         []Device
}

// Uses lists what a container has of its pod's claims.
func (m *Manager) Uses(pod *corev1.Pod, container string) []Used {
	c := podspec.Find(pod, container)
	if c == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []Used
	for _, want := range c.Resources.Claims {
		i := slices.IndexFunc(pod.Spec.ResourceClaims, func(p corev1.PodResourceClaim) bool { return p.Name == want.Name })
		if i < 0 {
			continue
		}
		name, err := nameOf(pod, &pod.Spec.ResourceClaims[i])
		if err != nil || name == "" {
			continue
		}
		for _, have := range m.claims {
			if have.Namespace != pod.Namespace || have.Name != name || !slices.Contains(have.Pods, string(pod.UID)) {
				continue
			}
			u := Used{Namespace: have.Namespace, Name: have.Name}
			for _, d := range have.Devices {
				if covers(d.Requests, want.Request) {
					u.Devices = append(u.Devices, d)
				}
			}
			out = append(out, u)
		}
	}
	return out
}

// covers tells whether a device that is for those requests of its claim is for one of
// them; the alternatives of a request are named REQUEST/ALTERNATIVE.
func covers(requests []string, want string) bool {
	return want == "" || len(requests) == 0 || slices.ContainsFunc(requests, func(r string) bool {
		return r == want || strings.HasPrefix(r, want+"/")
	})
}

// Grant is what a container is to have of its claims, each CDI device once.
func (m *Manager) Grant(pod *corev1.Pod, container string) *grant.Grant {
	g := &grant.Grant{}
	seen := map[string]bool{}
	for _, u := range m.Uses(pod, container) {
		for _, d := range u.Devices {
			for _, id := range d.CDI {
				if !seen[id] {
					seen[id] = true
					g.CDI = append(g.CDI, &runtimeapi.CDIDevice{Name: id})
				}
			}
		}
	}
	return g
}
