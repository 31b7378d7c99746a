// Package devices gives containers the devices that plugins announce: GPUs, network
// functions and what else is not the kernel's to share out. The protocol is
// https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/device-plugins
// (k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1).
//
//	plugin ──Register──> Manager.Serve ──┐
//	plugin <─ListAndWatch─ endpoint ─────┼─> devices and their health ─> node's status
//	plugin <─Allocate───── Admit ────────┘   what containers hold ─> file, runtime
//
// What containers hold is written to a file before they are made, so that a killed
// agent's successor gives no device away twice.
package devices

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	"k8s.io/utils/clock"
)

// goneAfter is how long a resource whose plugin is gone is still announced, with
// nothing allocatable, before its capacity is none.
const goneAfter = 5 * time.Minute

// Config is what a Manager needs.
type Config struct {
	// Dir is where plugins find kubelet.sock and put their own sockets.
	Dir string
	// File keeps what containers hold.
	File string
	// Registered is told of each plugin that registers; nil: nobody is.
	Registered func(resource string)
	// Changed is called when what the node has, or the health of devices, has changed;
	// pods are the UIDs of those that hold such devices. It must not block.
	Changed func(pods []string)
	Clock   clock.WithDelayedExecution
	Log     *slog.Logger
}

// Manager shares out the devices of one node. Make one with New.
type Manager struct {
	cfg Config

	mu        sync.Mutex
	ctx       context.Context // of Run; nil before
	resources map[string]*kind
	held      holdings
	allocate  sync.Mutex // one pod is served at a time
	wg        sync.WaitGroup
}

// kind is one resource and the plugin that announces it.
type kind struct {
	name    string
	plugin  *endpoint // nil: gone
	devices map[string]*device
	gone    time.Time // since when there has been no plugin
}

type device struct {
	healthy bool
	nodes   []int // NUMA
}

// New returns a manager that knows what containers hold since an earlier agent's time.
func New(cfg Config) (*Manager, error) {
	m := &Manager{cfg: cfg, resources: map[string]*kind{}}
	var err error
	if m.held, err = load(cfg.File); err != nil {
		return nil, fmt.Errorf("which containers hold which devices: %w: remove the file if no pod of this node uses devices", err)
	}
	now := cfg.Clock.Now()
	for _, name := range m.held.Resources {
		// Its plugin is expected to come back.
		m.resources[name] = &kind{name: name, gone: now}
	}
	return m, nil
}

// checkName refuses what is no name of an extended resource.
func checkName(name string) error {
	domain, _, ok := strings.Cut(name, "/")
	if !ok || strings.HasSuffix("."+domain, ".kubernetes.io") || strings.HasPrefix(name, corev1.DefaultResourceRequestsPrefix) ||
		len(validation.IsQualifiedName(corev1.DefaultResourceRequestsPrefix+name)) > 0 {
		return fmt.Errorf("the ResourceName %q is invalid: want VENDOR-DOMAIN/RESOURCE", name)
	}
	return nil
}

// take makes a plugin that of its resource; the one before it is let go.
func (m *Manager) take(name string, e *endpoint) error {
	m.mu.Lock()
	if m.ctx == nil {
		m.mu.Unlock()
		e.close()
		return errors.New("devices are not shared out yet: try again")
	}
	k := m.resources[name]
	if k == nil {
		k = &kind{name: name}
		m.resources[name] = k
	}
	old := k.plugin
	k.plugin, k.gone = e, time.Time{}
	if !slices.Contains(m.held.Resources, name) {
		m.held.Resources = append(slices.Clone(m.held.Resources), name)
		slices.Sort(m.held.Resources)
	}
	err := m.held.save(m.cfg.File)
	ctx := m.ctx
	m.mu.Unlock()
	if old != nil {
		old.close()
	}
	if err != nil {
		return err
	}
	if m.cfg.Registered != nil {
		m.cfg.Registered(name)
	}
	m.wg.Go(func() {
		e.follow(ctx, func(list []*pluginapi.Device) { m.listed(name, e, list) }, func(err error) { m.lost(name, e, err) })
	})
	return nil
}

// listed takes over what a plugin says of its devices.
func (m *Manager) listed(name string, e *endpoint, list []*pluginapi.Device) {
	next := map[string]*device{}
	for _, d := range list {
		v := &device{healthy: d.Health == pluginapi.Healthy}
		for _, n := range d.GetTopology().GetNodes() {
			v.nodes = append(v.nodes, int(n.ID))
		}
		next[d.ID] = v
	}
	m.replace(name, e, next, false)
}

// lost notes that a plugin no longer answers: none of its devices is given out.
func (m *Manager) lost(name string, e *endpoint, err error) {
	m.mu.Lock()
	k := m.resources[name]
	mine := k != nil && k.plugin == e
	next := map[string]*device{}
	if mine {
		for id, d := range k.devices {
			next[id] = &device{nodes: d.nodes}
		}
	}
	m.mu.Unlock()
	if !mine {
		return // another has taken its place
	}
	m.cfg.Log.Warn("a device plugin is gone: its devices are not given out until it registers again", "resource", name, "error", err)
	m.replace(name, e, next, true)
	m.cfg.Clock.AfterFunc(goneAfter, func() { m.cfg.Changed(nil) })
}

func (m *Manager) replace(name string, e *endpoint, next map[string]*device, gone bool) {
	m.mu.Lock()
	k := m.resources[name]
	if k == nil || k.plugin != e {
		m.mu.Unlock()
		return
	}
	changed := map[string]bool{}
	for id := range next {
		if old := k.devices[id]; old == nil || old.healthy != next[id].healthy {
			changed[id] = true
		}
	}
	for id := range k.devices {
		if next[id] == nil {
			changed[id] = true
		}
	}
	k.devices = next
	if gone {
		k.plugin, k.gone = nil, m.cfg.Clock.Now()
	}
	var pods []string
	for uid, containers := range m.held.Pods {
		for _, byName := range containers {
			if h := byName[name]; h != nil && slices.ContainsFunc(h.Devices, func(id string) bool { return changed[id] }) {
				pods = append(pods, uid)
				break
			}
		}
	}
	m.mu.Unlock()
	m.cfg.Changed(pods)
}

// Manages tells whether a resource is a plugin's, or was one's.
func (m *Manager) Manages(name corev1.ResourceName) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.resources[string(name)] != nil
}

// Capacity is what the node has of devices, and what of it pods may have.
func (m *Manager) Capacity() (capacity, allocatable corev1.ResourceList) {
	m.mu.Lock()
	defer m.mu.Unlock()
	capacity, allocatable = corev1.ResourceList{}, corev1.ResourceList{}
	for name, k := range m.resources {
		total, healthy := 0, 0
		for _, d := range k.devices {
			total++
			if d.healthy {
				healthy++
			}
		}
		if k.plugin == nil && m.cfg.Clock.Since(k.gone) >= goneAfter {
			total = 0
		}
		capacity[corev1.ResourceName(name)] = *resource.NewQuantity(int64(total), resource.DecimalSI)
		allocatable[corev1.ResourceName(name)] = *resource.NewQuantity(int64(healthy), resource.DecimalSI)
	}
	return capacity, allocatable
}

// Health says how the devices fare that a container holds, for its status.
func (m *Manager) Health(uid, container string) []corev1.ResourceStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []corev1.ResourceStatus
	byName := m.held.Pods[uid][container]
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		st := corev1.ResourceStatus{Name: corev1.ResourceName(name)}
		k := m.resources[name]
		for _, id := range byName[name].Devices {
			h := corev1.ResourceHealth{ResourceID: corev1.ResourceID(id), Health: corev1.ResourceHealthStatusUnknown}
			if k != nil && k.devices[id] != nil && k.plugin != nil {
				h.Health = corev1.ResourceHealthStatusUnhealthy
				if k.devices[id].healthy {
					h.Health = corev1.ResourceHealthStatusHealthy
				}
			}
			st.Resources = append(st.Resources, h)
		}
		out = append(out, st)
	}
	return out
}

// Device is a device as others see it.
type Device struct {
	Resource string
	ID       string
	Nodes    []int // NUMA
}

// Held lists the devices of a container, ordered by resource and ID.
func (m *Manager) Held(uid, container string) []Device {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []Device
	for name, h := range m.held.Pods[uid][container] {
		for _, id := range h.Devices {
			out = append(out, m.describe(name, id))
		}
	}
	slices.SortFunc(out, order)
	return out
}

// All lists the healthy devices of the node.
func (m *Manager) All() []Device {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []Device
	for name, k := range m.resources {
		for id, d := range k.devices {
			if d.healthy {
				out = append(out, m.describe(name, id))
			}
		}
	}
	slices.SortFunc(out, order)
	return out
}

func order(a, b Device) int {
	return cmp.Or(strings.Compare(a.Resource, b.Resource), strings.Compare(a.ID, b.ID))
}

func (m *Manager) describe(name, id string) Device {
	d := Device{Resource: name, ID: id}
	if k := m.resources[name]; k != nil && k.devices[id] != nil {
		d.Nodes = k.devices[id].nodes
	}
	return d
}

// Release takes back what a pod holds. It may be repeated.
func (m *Manager) Release(uid string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.held.Pods[uid] == nil {
		return nil
	}
	delete(m.held.Pods, uid)
	return m.held.save(m.cfg.File)
}

// Keep takes back what pods hold that are not among those.
func (m *Manager) Keep(pods map[string]bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := len(m.held.Pods)
	maps.DeleteFunc(m.held.Pods, func(uid string, _ map[string]map[string]*holding) bool { return !pods[uid] })
	if n == len(m.held.Pods) {
		return nil
	}
	return m.held.save(m.cfg.File)
}
