package api

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/clock"
	clocktesting "k8s.io/utils/clock/testing"

	"knarr.dev/knarr/apiserver/apitest"
	"knarr.dev/knarr/apiserver/registry"
	"knarr.dev/knarr/controller/serviceaddresses"
	"knarr.dev/knarr/store"
)

// The object of an address comes and goes in the very revision of its service.
func TestIPAddressesFollowServices(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	c, ctx := s.Client(t), t.Context()
	svcs, ips := c.CoreV1().Services("default"), c.NetworkingV1().IPAddresses()
	svc := must(svcs.Create(ctx, service("s", corev1.ServiceTypeClusterIP, 80), metav1.CreateOptions{}))(t)
	ip := must(ips.Get(ctx, svc.Spec.ClusterIP, metav1.GetOptions{}))(t)
	if p := ip.Spec.ParentRef; *p != (networkingv1.ParentReference{Resource: "services", Namespace: "default", Name: "s"}) ||
		ip.Labels["ipaddress.kubernetes.io/ip-family"] != "IPv4" || ip.Labels["ipaddress.kubernetes.io/managed-by"] != "ipallocator.k8s.io" ||
		ip.ResourceVersion != svc.ResourceVersion || ip.UID == "" || ip.CreationTimestamp.IsZero() {
		t.Errorf("address %+v of service at %s", ip, svc.ResourceVersion)
	}
	gone := func(name string) {
		t.Helper()
		if _, err := ips.Get(ctx, name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("address %s: %v, want none", name, err)
		}
	}
	external := []byte(`{"spec":{"type":"ExternalName","externalName":"example.com","clusterIP":null,"clusterIPs":null}}`)
	must(svcs.Patch(ctx, "s", types.MergePatchType, external, metav1.PatchOptions{}))(t)
	gone(ip.Name)
	svc = must(svcs.Patch(ctx, "s", types.MergePatchType, []byte(`{"spec":{"type":"ClusterIP","externalName":null}}`), metav1.PatchOptions{}))(t)
	must(ips.Get(ctx, svc.Spec.ClusterIP, metav1.GetOptions{}))(t)
	if err := svcs.Delete(ctx, "s", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	gone(svc.Spec.ClusterIP)
	// What does not become a service leaves nothing behind.
	fixed := service("fixed", corev1.ServiceTypeClusterIP, 80)
	fixed.Spec.ClusterIP = "10.96.77.7"
	must(svcs.Create(ctx, fixed, metav1.CreateOptions{DryRun: []string{"All"}}))(t)
	gone("10.96.77.7")
	// An address that somebody else has recorded is not given away.
	must(ips.Create(ctx, &networkingv1.IPAddress{ObjectMeta: metav1.ObjectMeta{Name: "10.96.77.7"}, Spec: networkingv1.IPAddressSpec{
		ParentRef: &networkingv1.ParentReference{Group: "gateway.networking.k8s.io", Resource: "gateways", Namespace: "default", Name: "g"}}}, metav1.CreateOptions{}))(t)
	if _, err := svcs.Create(ctx, fixed, metav1.CreateOptions{}); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "provided IP is already allocated") {
		t.Errorf("another's address: %v", err)
	}
	if l := must(ips.List(ctx, metav1.ListOptions{LabelSelector: "ipaddress.kubernetes.io/managed-by=ipallocator.k8s.io"}))(t); len(l.Items) != 1 || l.Items[0].Name != "10.96.0.1" {
		t.Errorf("left: %+v", l.Items)
	}
}

// Two servers on one store never give away one address twice, though one does not
// look at what the other has written before it decides.
func TestAddressesOfTwoServers(t *testing.T) {
	st := store.NewMemory()
	a, b := apitest.Start(t, apitest.Options{Store: st}), apitest.Start(t, apitest.Options{Store: st})
	own := service("own", corev1.ServiceTypeClusterIP, 80)
	own.Spec.ClusterIP = "10.96.5.5"
	must(a.Client(t).CoreV1().Services("default").Create(t.Context(), own, metav1.CreateOptions{}))(t)
	own.Name = "other"
	if _, err := b.Client(t).CoreV1().Services("default").Create(t.Context(), own, metav1.CreateOptions{}); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "provided IP is already allocated") {
		t.Errorf("the same address again: %v", err)
	}
}

// A further range is used once the first is full, and goes when nobody needs it.
func TestServiceCIDRs(t *testing.T) {
	s := apitest.Start(t, apitest.Options{Services: registry.ServiceRanges{ClusterIPs: netip.MustParsePrefix("10.96.0.0/29"), NodePortMin: 30000, NodePortMax: 30009}})
	clk := clocktesting.NewFakeClock(time.Now())
	control(t, s, clk, serviceaddresses.NewRanges())
	c, ctx := s.Client(t), t.Context()
	ranges, svcs := c.NetworkingV1().ServiceCIDRs(), c.CoreV1().Services("default")
	for i := range 5 { // of 6, one is the service "kubernetes"'s
		must(svcs.Create(ctx, service("s"+string(rune('a'+i)), corev1.ServiceTypeClusterIP, 80), metav1.CreateOptions{}))(t)
	}
	next := service("next", corev1.ServiceTypeClusterIP, 80)
	if _, err := svcs.Create(ctx, next, metav1.CreateOptions{}); err == nil || !strings.Contains(err.Error(), "range is full") {
		t.Fatalf("a full range: %v", err)
	}
	w := must(ranges.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=more"}))(t)
	defer w.Stop()
	await := func(what string, ok func(watch.EventType, *networkingv1.ServiceCIDR) bool) {
		t.Helper()
		timeout := time.After(10 * time.Second)
		for {
			select {
			case ev := <-w.ResultChan():
				if r, is := ev.Object.(*networkingv1.ServiceCIDR); is && ok(ev.Type, r) {
					return
				}
			case <-timeout:
				t.Fatal(what)
			}
		}
	}
	must(ranges.Create(ctx, &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "more"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.97.0.0/24"}}}, metav1.CreateOptions{}))(t)
	await("not ready", func(_ watch.EventType, r *networkingv1.ServiceCIDR) bool {
		return len(r.Finalizers) == 1 && r.Finalizers[0] == "networking.k8s.io/service-cidr-finalizer" && meta.IsStatusConditionTrue(r.Status.Conditions, "Ready")
	})
	if svc := must(svcs.Create(ctx, next, metav1.CreateOptions{}))(t); !strings.HasPrefix(svc.Spec.ClusterIP, "10.97.0.") {
		t.Errorf("address %s", svc.Spec.ClusterIP)
	}
	if err := ranges.Delete(ctx, "more", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	await("deleted though in use", func(_ watch.EventType, r *networkingv1.ServiceCIDR) bool {
		cond := meta.FindStatusCondition(r.Status.Conditions, "Ready")
		return r.DeletionTimestamp != nil && cond.Status == metav1.ConditionFalse && cond.Reason == "Terminating" &&
			cond.Message == "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR"
	})
	late := service("late", corev1.ServiceTypeClusterIP, 80)
	if _, err := svcs.Create(ctx, late, metav1.CreateOptions{}); err == nil {
		t.Error("a range that is being deleted gives addresses away")
	}
	late.Spec.ClusterIP = "10.97.0.200"
	if _, err := svcs.Create(ctx, late, metav1.CreateOptions{}); err == nil || !strings.Contains(err.Error(), "does not match the current range") {
		t.Errorf("an address of a range that is being deleted: %v", err)
	}
	// Changes of the service itself remain possible.
	must(svcs.Patch(ctx, "next", types.MergePatchType, []byte(`{"metadata":{"labels":{"a":"b"}}}`), metav1.PatchOptions{}))(t)
	if err := svcs.Delete(ctx, "next", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	clk.Step(11 * time.Second)
	await("not deleted", func(typ watch.EventType, _ *networkingv1.ServiceCIDR) bool { return typ == watch.Deleted })
}

func TestAddressRepair(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	c, ctx := s.Client(t), t.Context()
	ips := c.NetworkingV1().IPAddresses()
	record := func(name, svc string, labels map[string]string) {
		must(ips.Create(ctx, &networkingv1.IPAddress{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}, Spec: networkingv1.IPAddressSpec{
			ParentRef: &networkingv1.ParentReference{Resource: "services", Namespace: "default", Name: svc}}}, metav1.CreateOptions{}))(t)
	}
	managed := map[string]string{"ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"}
	record("10.96.9.1", "none", managed)
	record("10.96.9.2", "kubernetes", managed)
	record("10.96.9.3", "none", nil) // somebody's own
	if err := ips.Delete(ctx, "10.96.0.1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w := must(ips.Watch(ctx, metav1.ListOptions{}))(t)
	defer w.Stop()
	control(t, s, clock.RealClock{}, serviceaddresses.NewRepair())
	got := map[string]watch.EventType{}
	want := map[string]watch.EventType{"10.96.9.1": watch.Deleted, "10.96.9.2": watch.Deleted, "10.96.9.3": watch.Added, "10.96.0.1": watch.Added}
	timeout := time.After(10 * time.Second)
	for again := false; ; {
		select {
		case ev := <-w.ResultChan():
			got[ev.Object.(*networkingv1.IPAddress).Name] = ev.Type
		case <-timeout:
			t.Fatalf("%v, want %v", got, want)
		}
		right := len(got) == len(want)
		for name, typ := range want {
			right = right && got[name] == typ
		}
		if right && again {
			return
		}
		if right { // once more, while the controller runs
			again = true
			if err := ips.Delete(ctx, "10.96.0.1", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			got["10.96.0.1"] = watch.Deleted
			<-w.ResultChan() // the deletion
		}
	}
}
