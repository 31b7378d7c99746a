package registry

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/codec"
	"knarr.dev/knarr/apiserver/watchcache"
	"knarr.dev/knarr/store"
)

var (
	ipAddressesGVR  = networkingv1.SchemeGroupVersion.WithResource("ipaddresses")
	serviceCIDRsGVR = networkingv1.SchemeGroupVersion.WithResource("servicecidrs")
)

// managedByAllocator is who keeps the IPAddresses of services, as in Kubernetes.
const managedByAllocator = "ipallocator.k8s.io"

// defaultServiceCIDR is the object of the range that is there from the start.
const defaultServiceCIDR = "kubernetes"

// inUse are the prefixes that new addresses come from, the first one first: those
// of the ServiceCIDRs that are ready and not being deleted. mu is held.
func (a *serviceAllocator) inUse() []netip.Prefix {
	if a.cidrs == nil || a.prefixes != nil && a.prefixesAt == a.cidrs.Cache.Changes() {
		return a.prefixes
	}
	a.prefixesAt = a.cidrs.Cache.Changes()
	a.prefixes = []netip.Prefix{a.ranges.ClusterIPs}
	a.cidrs.Cache.Snapshot().Ascend("", "", func(i *watchcache.Item) bool {
		c := i.Object.(*networkingv1.ServiceCIDR)
		usable := c.DeletionTimestamp == nil && meta.IsStatusConditionTrue(c.Status.Conditions, networkingv1.ServiceCIDRConditionReady)
		for _, text := range c.Spec.CIDRs {
			p, err := netip.ParsePrefix(text)
			switch {
			case err != nil || !p.Addr().Is4():
			case usable && !slices.Contains(a.prefixes, p):
				a.prefixes = append(a.prefixes, p)
			case c.Name == defaultServiceCIDR && c.DeletionTimestamp != nil && p == a.ranges.ClusterIPs:
				a.prefixes = a.prefixes[1:]
			}
		}
		return true
	})
	return a.prefixes
}

func (a *serviceAllocator) assignIP(h *hold, key string, svc *corev1.Service, spec *field.Path) field.ErrorList {
	ip := svc.Spec.ClusterIP
	if ip == "" && len(svc.Spec.ClusterIPs) > 0 {
		ip = svc.Spec.ClusterIPs[0]
	}
	path := spec.Child("clusterIPs")
	if ip == "" {
		addr, ok := a.freeIP()
		if !ok {
			return field.ErrorList{field.InternalError(path, errors.New("failed to allocate a serviceIP: range is full"))}
		}
		ip, h.given = addr.String(), true
		h.takeIP(addr, key)
	} else if addr, err := netip.ParseAddr(ip); err == nil && a.ips[addr] != key {
		if !slices.ContainsFunc(a.inUse(), func(p netip.Prefix) bool { return p.Contains(addr) }) {
			return field.ErrorList{field.Invalid(path, []string{ip}, fmt.Sprintf("failed to allocate IP %s: the provided network does not match the current range", ip))}
		}
		if a.ipTaken(addr, key) {
			return field.ErrorList{alreadyAllocated(path, ip)}
		}
		h.takeIP(addr, key)
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

func alreadyAllocated(path *field.Path, ip string) *field.Error {
	return field.Invalid(path, []string{ip}, fmt.Sprintf("failed to allocate IP %s: provided IP is already allocated", ip))
}

// ipTaken tells whether an address belongs to another than the service of key.
func (a *serviceAllocator) ipTaken(addr netip.Addr, key string) bool {
	if owner, used := a.ips[addr]; used && owner != key || a.heldIPs.other(addr, key) {
		return true
	}
	r := a.record(addr)
	return r != nil && !belongs(r, key)
}

// record returns an address's object, or nil.
func (a *serviceAllocator) record(addr netip.Addr) *networkingv1.IPAddress {
	if a.addresses == nil {
		return nil
	}
	if it := a.addresses.Cache.Get(addr.String()); it != nil {
		return it.Object.(*networkingv1.IPAddress)
	}
	return nil
}

// belongs tells whether an address is that of the service of key.
func belongs(r *networkingv1.IPAddress, key string) bool {
	p := r.Spec.ParentRef
	return p != nil && p.Group == "" && p.Resource == "services" && objectKey(p.Namespace, p.Name) == key
}

func (a *serviceAllocator) freeIP() (netip.Addr, bool) {
	for _, p := range a.inUse() {
		if addr, ok := a.freeIn(p); ok {
			return addr, true
		}
	}
	return netip.Addr{}, false
}

// freeIn picks from the upper part of a range, so that the lower one stays free
// for addresses chosen by hand, as Kubernetes does.
func (a *serviceAllocator) freeIn(prefix netip.Prefix) (netip.Addr, bool) {
	bits := 32 - prefix.Bits()
	size := uint32(1) << min(bits, 24)
	base := be32(prefix.Masked().Addr())
	reserved := min(max(16, size/16), 256)
	if size <= reserved*2 {
		reserved = 1
	}
	try := func(from, to uint32) (netip.Addr, bool) {
		if to <= from {
			return netip.Addr{}, false
		}
		n := to - from
		start := rand.Uint32N(n)
		for i := range n {
			addr := from32(base + from + (start+i)%n)
			if !a.ipTaken(addr, "") {
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

// records are the writes by which IPAddresses follow a service that becomes svc
// (nil: is deleted); old is nil for a new one.
func (a *serviceAllocator) records(svc, old *corev1.Service) (out []store.Write, err error) {
	if a.addresses == nil {
		return nil, nil
	}
	wanted := clusterIPs(svc)
	for _, addr := range wanted {
		if a.record(addr) != nil {
			continue // of this very service, or it would have been refused
		}
		w, err := a.newRecord(addr, svc)
		if err != nil {
			return nil, err
		}
		out = append(out, w)
	}
	for _, addr := range clusterIPs(old) {
		if it := a.addresses.Cache.Get(addr.String()); it != nil && !slices.Contains(wanted, addr) &&
			belongs(it.Object.(*networkingv1.IPAddress), objectKey(old.Namespace, old.Name)) {
			out = append(out, store.Write{Key: watchcache.Key(a.addresses.Kind, it.Key), If: it.Revision, Delete: true})
		}
	}
	return out, nil
}

func clusterIPs(svc *corev1.Service) (out []netip.Addr) {
	if svc == nil || !hasClusterIP(svc) {
		return nil
	}
	for _, ip := range svc.Spec.ClusterIPs {
		if addr, err := netip.ParseAddr(ip); err == nil {
			out = append(out, addr)
		}
	}
	return out
}

func (a *serviceAllocator) newRecord(addr netip.Addr, svc *corev1.Service) (store.Write, error) {
	family := corev1.IPv4Protocol
	if addr.Is6() {
		family = corev1.IPv6Protocol
	}
	value, err := codec.EncodeStored(a.addresses.Kind, &networkingv1.IPAddress{
		TypeMeta: metav1.TypeMeta{APIVersion: networkingv1.SchemeGroupVersion.String(), Kind: "IPAddress"},
		ObjectMeta: metav1.ObjectMeta{
			Name: addr.String(), UID: uuid.NewUUID(), CreationTimestamp: metav1.NewTime(a.now()).Rfc3339Copy(),
			Labels: map[string]string{networkingv1.LabelIPAddressFamily: string(family), networkingv1.LabelManagedBy: managedByAllocator},
		},
		Spec: networkingv1.IPAddressSpec{ParentRef: &networkingv1.ParentReference{Resource: "services", Namespace: svc.Namespace, Name: svc.Name}},
	})
	return store.Write{Key: watchcache.Key(a.addresses.Kind, addr.String()), Value: value}, err
}

// beforeRemove are the writes that belong to the removal of an object.
func (a *serviceAllocator) beforeRemove(obj kind.Object) ([]store.Write, error) {
	svc, ok := obj.(*corev1.Service)
	if !ok {
		return nil, nil
	}
	return a.records(nil, svc)
}

// errAddressTaken: another server has given the address away.
var errAddressTaken = errors.New("the address of the service belongs to another")

// putNew stores a new object. A service whose address another server has given away
// meanwhile gets another, unless its author chose it: then he is told.
func (r *Registry) putNew(ctx context.Context, res *Resource, key string, obj kind.Object, h *hold) (*watchcache.Item, error) {
	for race := 0; ; race++ {
		it, err := r.put(ctx, res, key, 0, obj, h.also...)
		svc, ok := obj.(*corev1.Service)
		if !ok || !errors.Is(err, errAddressTaken) || race == maxRaces {
			return it, err
		}
		h.release()
		if _, err := r.latest(ctx, res, key, true); err != nil {
			return nil, err
		}
		if h.given {
			svc.Spec.ClusterIP, svc.Spec.ClusterIPs = "", nil
		}
		next, err := r.services.hold(res, svc, nil)
		if err != nil {
			return nil, err
		}
		*h = *next
	}
}
