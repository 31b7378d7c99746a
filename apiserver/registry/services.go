package registry

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/watchcache"
	"knarr.dev/knarr/store"
)

// ServiceRanges are what services get addresses and ports from.
type ServiceRanges struct {
	// ClusterIPs is the range of IPv4 addresses that is there from the start; every
	// ServiceCIDR that is ready adds another.
	ClusterIPs               netip.Prefix
	NodePortMin, NodePortMax int32 // inclusive
}

// serviceAllocator hands out cluster IPs and node ports. What is in use follows
// from the services themselves, whose events it reads before each decision, and
// from the IPAddress objects; what is decided but not yet written, it holds.
type serviceAllocator struct {
	ranges    ServiceRanges
	addresses *Resource // IPAddress; nil: addresses have no objects
	cidrs     *Resource // ServiceCIDR; nil: there is one range
	now       func() time.Time

	mu      sync.Mutex
	cache   *watchcache.Cache
	watcher *watchcache.Watcher
	ips     map[netip.Addr]string // to the service's key
	ports   map[nodePort]string
	// Of writes under way; their own events take them for good before they end.
	heldIPs   held[netip.Addr]
	heldPorts held[nodePort]

	prefixes   []netip.Prefix // in use
	prefixesAt int64          // cidrs.Cache.Changes of then
}

type nodePort struct {
	protocol corev1.Protocol
	port     int32
}

func newServiceAllocator(ranges ServiceRanges, now func() time.Time, services, addresses, cidrs *Resource) (*serviceAllocator, error) {
	a := &serviceAllocator{ranges: ranges, addresses: addresses, cidrs: cidrs, now: now,
		heldIPs: held[netip.Addr]{}, heldPorts: held[nodePort]{}, prefixes: []netip.Prefix{ranges.ClusterIPs}}
	if services == nil {
		return a, nil
	}
	if !ranges.ClusterIPs.IsValid() || !ranges.ClusterIPs.Addr().Is4() {
		return nil, fmt.Errorf("service cluster IP range %q: must be an IPv4 prefix such as 10.96.0.0/16", ranges.ClusterIPs)
	}
	a.cache = services.Cache
	a.reload()
	return a, nil
}

func (a *serviceAllocator) reload() {
	if a.watcher != nil {
		a.watcher.Stop()
	}
	a.ips, a.ports = map[netip.Addr]string{}, map[nodePort]string{}
	var s *watchcache.Snapshot
	s, a.watcher = a.cache.SnapshotAndWatch()
	s.Ascend("", "", func(i *watchcache.Item) bool {
		a.take(i.Key, i.Object.(*corev1.Service))
		return true
	})
}

func (a *serviceAllocator) take(key string, svc *corev1.Service) {
	for _, ip := range svc.Spec.ClusterIPs {
		if addr, err := netip.ParseAddr(ip); err == nil {
			a.ips[addr] = key
		}
	}
	for _, p := range nodePorts(svc) {
		a.ports[p] = key
	}
}

func (a *serviceAllocator) drop(svc *corev1.Service) {
	for _, ip := range svc.Spec.ClusterIPs {
		if addr, err := netip.ParseAddr(ip); err == nil {
			delete(a.ips, addr)
		}
	}
	for _, p := range nodePorts(svc) {
		delete(a.ports, p)
	}
}

func nodePorts(svc *corev1.Service) []nodePort {
	var out []nodePort
	for _, p := range svc.Spec.Ports {
		if p.NodePort != 0 {
			out = append(out, nodePort{p.Protocol, p.NodePort})
		}
	}
	if svc.Spec.HealthCheckNodePort != 0 {
		out = append(out, nodePort{corev1.ProtocolTCP, svc.Spec.HealthCheckNodePort})
	}
	return out
}

// catchUp applies the services' changes; mu is held.
func (a *serviceAllocator) catchUp() {
	events, err := a.watcher.Poll()
	if err != nil {
		a.reload()
		return
	}
	for _, e := range events {
		if e.Prev != nil {
			a.drop(e.Prev.Object.(*corev1.Service))
		}
		if e.Type != watchcache.Deleted {
			a.take(e.Item.Key, e.Item.Object.(*corev1.Service))
		}
	}
}

// hold is what a write of a service has been given. release must be called when
// the write has ended.
type hold struct {
	a     *serviceAllocator
	ips   []netip.Addr
	ports []nodePort
	given bool // the address was the allocator's choice
	// also are the writes of IPAddresses that belong to the service's.
	also []store.Write
}

func (h *hold) release() {
	if len(h.ips) == 0 && len(h.ports) == 0 {
		return
	}
	h.a.mu.Lock()
	defer h.a.mu.Unlock()
	h.forget()
}

// forget is release for who holds mu.
func (h *hold) forget() {
	for _, ip := range h.ips {
		h.a.heldIPs.drop(ip)
	}
	for _, p := range h.ports {
		h.a.heldPorts.drop(p)
	}
	h.ips, h.ports = nil, nil
}

// held are things that writes under way have been given, and to which service's:
// more than one write may be of the same service.
type held[K comparable] map[K]holders

type holders struct {
	key    string
	writes int
}

func (m held[K]) take(thing K, key string) { m[thing] = holders{key, m[thing].writes + 1} }

func (m held[K]) drop(thing K) {
	if h := m[thing]; h.writes > 1 {
		m[thing] = holders{h.key, h.writes - 1}
		return
	}
	delete(m, thing)
}

// other tells whether a write of another service than that of key has it.
func (m held[K]) other(thing K, key string) bool {
	h, ok := m[thing]
	return ok && h.key != key
}

// beforeCreate gives a new service what it needs.
// nothing is what objects other than services hold.
var nothing hold

func (a *serviceAllocator) beforeCreate(res *Resource, obj kind.Object) (*hold, error) {
	svc, ok := obj.(*corev1.Service)
	if !ok {
		return &nothing, nil
	}
	return a.hold(res, svc, nil)
}

func (a *serviceAllocator) beforeUpdate(res *Resource, subresource string, obj, old kind.Object) (*hold, error) {
	svc, ok := obj.(*corev1.Service)
	if !ok || subresource != "" {
		return &nothing, nil
	}
	was := old.(*corev1.Service)
	keepAddresses(svc, was)
	dropTypeFields(svc, was)
	return a.hold(res, svc, was)
}

func (a *serviceAllocator) hold(res *Resource, svc, old *corev1.Service) (*hold, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.catchUp()
	h := &hold{a: a}
	if errs := a.assign(h, svc); len(errs) > 0 {
		h.forget()
		return nil, apierrors.NewInvalid(res.GVK().GroupKind(), svc.Name, errs)
	}
	var err error
	if h.also, err = a.records(svc, old); err != nil {
		h.forget()
		return nil, apierrors.NewInternalError(err)
	}
	return h, nil
}

func (h *hold) takeIP(addr netip.Addr, key string) {
	h.a.heldIPs.take(addr, key)
	h.ips = append(h.ips, addr)
}

func (h *hold) takePort(p nodePort, key string) {
	h.a.heldPorts.take(p, key)
	h.ports = append(h.ports, p)
}

// assign fills absent addresses and ports, and refuses those of others; mu is held.
func (a *serviceAllocator) assign(h *hold, svc *corev1.Service) field.ErrorList {
	key := objectKey(svc.Namespace, svc.Name)
	spec := field.NewPath("spec")
	var errs field.ErrorList
	if hasClusterIP(svc) {
		errs = append(errs, a.assignIP(h, key, svc, spec)...)
	}
	if hasNodePorts(svc) {
		errs = append(errs, a.assignPorts(h, key, svc, spec)...)
	}
	return errs
}

func (a *serviceAllocator) assignPorts(h *hold, key string, svc *corev1.Service, spec *field.Path) field.ErrorList {
	var errs field.ErrorList
	chosen := map[int32]int32{} // service port to node port, shared by protocols
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		path := spec.Child("ports").Index(i).Child("nodePort")
		if p.NodePort != 0 {
			if p.NodePort < a.ranges.NodePortMin || p.NodePort > a.ranges.NodePortMax {
				errs = append(errs, field.Invalid(path, p.NodePort, fmt.Sprintf("provided port is not in the valid range. The range of valid ports is %d-%d", a.ranges.NodePortMin, a.ranges.NodePortMax)))
			} else if n := (nodePort{p.Protocol, p.NodePort}); a.portTaken(n, key) {
				errs = append(errs, field.Invalid(path, p.NodePort, "provided port is already allocated"))
			} else if a.ports[n] != key {
				h.takePort(n, key)
			}
			chosen[p.Port] = p.NodePort
			continue
		}
		if n, ok := chosen[p.Port]; ok {
			if number := (nodePort{p.Protocol, n}); !a.portTaken(number, key) {
				p.NodePort = n
				h.takePort(number, key)
				continue
			}
		}
		n, ok := a.freePort(p.Protocol)
		if !ok {
			errs = append(errs, field.InternalError(path, fmt.Errorf("failed to allocate a nodePort: range is full")))
			continue
		}
		p.NodePort, chosen[p.Port] = n, n
		h.takePort(nodePort{p.Protocol, n}, key)
	}
	return errs
}

func (a *serviceAllocator) freePort(protocol corev1.Protocol) (int32, bool) {
	n := a.ranges.NodePortMax - a.ranges.NodePortMin + 1
	start := rand.Int32N(n)
	for i := range n {
		port := a.ranges.NodePortMin + (start+i)%n
		if !a.portTaken(nodePort{protocol, port}, "") {
			return port, true
		}
	}
	return 0, false
}

// portTaken tells whether another service than that of key has a node port.
func (a *serviceAllocator) portTaken(p nodePort, key string) bool {
	if owner, used := a.ports[p]; used && owner != key {
		return true
	}
	return a.heldPorts.other(p, key)
}
