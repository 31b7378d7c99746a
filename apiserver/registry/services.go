package registry

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/watchcache"
)

// ServiceRanges are what services get addresses and ports from.
type ServiceRanges struct {
	ClusterIPs               netip.Prefix // IPv4
	NodePortMin, NodePortMax int32        // inclusive
}

// serviceAllocator hands out cluster IPs and node ports. What is in use follows
// from the services themselves: the allocator reads their events before each
// decision, and its lock is held until the write that uses the decision is done.
type serviceAllocator struct {
	ranges ServiceRanges

	mu      sync.Mutex
	cache   *watchcache.Cache
	watcher *watchcache.Watcher
	ips     map[netip.Addr]string // to the service's key
	ports   map[nodePort]string
	// taken but not yet written: given back when the write ends, and taken for
	// good by the service's own event
	heldIPs   []netip.Addr
	heldPorts []nodePort
}

type nodePort struct {
	protocol corev1.Protocol
	port     int32
}

func newServiceAllocator(ranges ServiceRanges, services *Resource) (*serviceAllocator, error) {
	a := &serviceAllocator{ranges: ranges}
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

func nothing() {}

// beforeCreate gives a new service what it needs; release must be called when
// the write has ended.
func (a *serviceAllocator) beforeCreate(res *Resource, obj kind.Object) (release func(), err error) {
	svc, ok := obj.(*corev1.Service)
	if !ok {
		return nothing, nil
	}
	return a.locked(res, svc)
}

func (a *serviceAllocator) beforeUpdate(res *Resource, subresource string, obj, old kind.Object) (release func(), err error) {
	svc, ok := obj.(*corev1.Service)
	if !ok || subresource != "" {
		return nothing, nil
	}
	keepAddresses(svc, old.(*corev1.Service))
	dropTypeFields(svc, old.(*corev1.Service))
	return a.locked(res, svc)
}

func (a *serviceAllocator) locked(res *Resource, svc *corev1.Service) (func(), error) {
	a.mu.Lock()
	locked := true
	defer func() {
		if locked { // a failure of any kind must not keep others out
			a.release()
		}
	}()
	a.catchUp()
	if errs := a.assign(svc); len(errs) > 0 {
		return nil, apierrors.NewInvalid(res.GVK().GroupKind(), svc.Name, errs)
	}
	locked = false
	return a.release, nil
}

func (a *serviceAllocator) release() {
	for _, ip := range a.heldIPs {
		delete(a.ips, ip)
	}
	for _, p := range a.heldPorts {
		delete(a.ports, p)
	}
	a.heldIPs, a.heldPorts = a.heldIPs[:0], a.heldPorts[:0]
	a.mu.Unlock()
}

// keepAddresses carries allocations over when a client's update leaves them out.
func keepAddresses(svc, old *corev1.Service) {
	if hasClusterIP(svc) && hasClusterIP(old) {
		if svc.Spec.ClusterIP == "" && len(svc.Spec.ClusterIPs) == 0 {
			svc.Spec.ClusterIP, svc.Spec.ClusterIPs = old.Spec.ClusterIP, slices.Clone(old.Spec.ClusterIPs)
		} else if len(svc.Spec.ClusterIPs) == 0 && svc.Spec.ClusterIP == old.Spec.ClusterIP {
			svc.Spec.ClusterIPs = slices.Clone(old.Spec.ClusterIPs)
		}
	}
	if hasNodePorts(svc) && hasNodePorts(old) {
		for i := range svc.Spec.Ports {
			p := &svc.Spec.Ports[i]
			for _, o := range old.Spec.Ports {
				if p.NodePort == 0 && p.Port == o.Port && p.Protocol == o.Protocol {
					p.NodePort = o.NodePort
				}
			}
		}
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName && hasClusterIP(old) {
		if svc.Spec.ClusterIP == old.Spec.ClusterIP {
			svc.Spec.ClusterIP, svc.Spec.ClusterIPs = "", nil
		}
	}
	if !hasNodePorts(svc) && hasNodePorts(old) {
		for i := range svc.Spec.Ports {
			for _, o := range old.Spec.Ports {
				if svc.Spec.Ports[i].NodePort == o.NodePort {
					svc.Spec.Ports[i].NodePort = 0
				}
			}
		}
	}
}

// dropTypeFields clears what only the former type could have, unless the client
// changed it in the same breath: that is its mistake to hear of.
func dropTypeFields(svc, old *corev1.Service) {
	s, o := &svc.Spec, &old.Spec
	external := func(svc *corev1.Service) bool {
		t := svc.Spec.Type
		return t == corev1.ServiceTypeNodePort || t == corev1.ServiceTypeLoadBalancer || t == corev1.ServiceTypeClusterIP && len(svc.Spec.ExternalIPs) > 0
	}
	if external(old) && !external(svc) && s.ExternalTrafficPolicy == o.ExternalTrafficPolicy {
		s.ExternalTrafficPolicy = ""
	}
	balanced, wasBalanced := s.Type == corev1.ServiceTypeLoadBalancer, o.Type == corev1.ServiceTypeLoadBalancer
	local := balanced && s.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	if !local && s.HealthCheckNodePort == o.HealthCheckNodePort {
		s.HealthCheckNodePort = 0
	}
	if wasBalanced && !balanced {
		if equalPointers(s.AllocateLoadBalancerNodePorts, o.AllocateLoadBalancerNodePorts) {
			s.AllocateLoadBalancerNodePorts = nil
		}
		if equalPointers(s.LoadBalancerClass, o.LoadBalancerClass) {
			s.LoadBalancerClass = nil
		}
	}
	if hasClusterIP(old) && !hasClusterIP(svc) {
		if equalPointers(s.IPFamilyPolicy, o.IPFamilyPolicy) {
			s.IPFamilyPolicy = nil
		}
		if slices.Equal(s.IPFamilies, o.IPFamilies) {
			s.IPFamilies = nil
		}
		if equalPointers(s.InternalTrafficPolicy, o.InternalTrafficPolicy) {
			s.InternalTrafficPolicy = nil
		}
	}
}

func equalPointers[T comparable](a, b *T) bool {
	return a == b || a != nil && b != nil && *a == *b
}

func hasClusterIP(svc *corev1.Service) bool { return svc.Spec.Type != corev1.ServiceTypeExternalName }

func hasNodePorts(svc *corev1.Service) bool {
	switch svc.Spec.Type {
	case corev1.ServiceTypeNodePort:
		return true
	case corev1.ServiceTypeLoadBalancer:
		return svc.Spec.AllocateLoadBalancerNodePorts == nil || *svc.Spec.AllocateLoadBalancerNodePorts
	}
	return false
}

// assign fills absent addresses and ports, and refuses those of others.
func (a *serviceAllocator) assign(svc *corev1.Service) field.ErrorList {
	key := objectKey(svc.Namespace, svc.Name)
	spec := field.NewPath("spec")
	var errs field.ErrorList
	if hasClusterIP(svc) {
		errs = append(errs, a.assignIP(key, svc, spec)...)
	}
	if hasNodePorts(svc) {
		errs = append(errs, a.assignPorts(key, svc, spec)...)
	}
	return errs
}

func (a *serviceAllocator) assignIP(key string, svc *corev1.Service, spec *field.Path) field.ErrorList {
	ip := svc.Spec.ClusterIP
	if ip == "" && len(svc.Spec.ClusterIPs) > 0 {
		ip = svc.Spec.ClusterIPs[0]
	}
	if ip == "" {
		addr, ok := a.freeIP()
		if !ok {
			return field.ErrorList{field.InternalError(spec.Child("clusterIPs"), fmt.Errorf("failed to allocate a serviceIP: range is full"))}
		}
		ip = addr.String()
		a.ips[addr] = key
		a.heldIPs = append(a.heldIPs, addr)
	} else if addr, err := netip.ParseAddr(ip); err == nil {
		path := spec.Child("clusterIPs")
		if !a.ranges.ClusterIPs.Contains(addr) {
			return field.ErrorList{field.Invalid(path, svc.Spec.ClusterIPs, fmt.Sprintf("failed to allocate IP %s: the provided IP (%s) is not in the valid range. The range of valid IPs is %s", ip, ip, a.ranges.ClusterIPs))}
		}
		if owner, used := a.ips[addr]; used && owner != key {
			return field.ErrorList{field.Invalid(path, []string{ip}, fmt.Sprintf("failed to allocate IP %s: provided IP is already allocated", ip))}
		}
	}
	svc.Spec.ClusterIP = ip
	if len(svc.Spec.ClusterIPs) == 0 {
		svc.Spec.ClusterIPs = []string{ip}
	}
	if len(svc.Spec.IPFamilies) == 0 {
		svc.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
	}
	if p := svc.Spec.IPFamilyPolicy; p != nil && *p == corev1.IPFamilyPolicyRequireDualStack && svc.Spec.Type != corev1.ServiceTypeExternalName {
		return field.ErrorList{field.Invalid(spec.Child("ipFamilyPolicy"), *p, "this cluster is not configured for dual-stack services")}
	}
	if svc.Spec.IPFamilyPolicy == nil {
		single := corev1.IPFamilyPolicySingleStack
		svc.Spec.IPFamilyPolicy = &single
	}
	return nil
}

// freeIP picks from the upper part of the range, so that the lower one stays
// free for addresses chosen by hand, as Kubernetes does.
func (a *serviceAllocator) freeIP() (netip.Addr, bool) {
	bits := 32 - a.ranges.ClusterIPs.Bits()
	size := uint32(1) << min(bits, 24)
	base := be32(a.ranges.ClusterIPs.Masked().Addr())
	reserved := min(max(16, size/16), 256)
	if size <= reserved*2 {
		reserved = 1
	}
	try := func(from, to uint32) (netip.Addr, bool) {
		n := to - from
		if n == 0 {
			return netip.Addr{}, false
		}
		start := rand.Uint32N(n)
		for i := range n {
			addr := from32(base + from + (start+i)%n)
			if _, used := a.ips[addr]; !used {
				return addr, true
			}
		}
		return netip.Addr{}, false
	}
	if addr, ok := try(reserved, size-1); ok {
		return addr, true
	}
	return try(1, reserved)
}

func be32(a netip.Addr) uint32 {
	b := a.As4()
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

func from32(v uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

func (a *serviceAllocator) assignPorts(key string, svc *corev1.Service, spec *field.Path) field.ErrorList {
	var errs field.ErrorList
	chosen := map[int32]int32{} // service port to node port, shared by protocols
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		path := spec.Child("ports").Index(i).Child("nodePort")
		if p.NodePort != 0 {
			if p.NodePort < a.ranges.NodePortMin || p.NodePort > a.ranges.NodePortMax {
				errs = append(errs, field.Invalid(path, p.NodePort, fmt.Sprintf("provided port is not in the valid range. The range of valid ports is %d-%d", a.ranges.NodePortMin, a.ranges.NodePortMax)))
			} else if owner, used := a.ports[nodePort{p.Protocol, p.NodePort}]; used && owner != key {
				errs = append(errs, field.Invalid(path, p.NodePort, "provided port is already allocated"))
			}
			chosen[p.Port] = p.NodePort
			continue
		}
		if n, ok := chosen[p.Port]; ok {
			if owner, used := a.ports[nodePort{p.Protocol, n}]; !used || owner == key {
				p.NodePort = n
				continue
			}
		}
		n, ok := a.freePort(p.Protocol)
		if !ok {
			errs = append(errs, field.InternalError(path, fmt.Errorf("failed to allocate a nodePort: range is full")))
			continue
		}
		p.NodePort, chosen[p.Port] = n, n
		a.ports[nodePort{p.Protocol, n}] = key
		a.heldPorts = append(a.heldPorts, nodePort{p.Protocol, n})
	}
	return errs
}

func (a *serviceAllocator) freePort(protocol corev1.Protocol) (int32, bool) {
	n := a.ranges.NodePortMax - a.ranges.NodePortMin + 1
	start := rand.Int32N(n)
	for i := range n {
		port := a.ranges.NodePortMin + (start+i)%n
		if _, used := a.ports[nodePort{protocol, port}]; !used {
			return port, true
		}
	}
	return 0, false
}
