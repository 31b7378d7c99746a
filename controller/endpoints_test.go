package controller

import (
	"fmt"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/client/clienttest"
	"knarr.dev/knarr/controller/endpointslice"
	"knarr.dev/knarr/controller/engine/enginetest"
)

func service(name string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name}, Spec: corev1.ServiceSpec{Selector: map[string]string{"app": name},
		Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080), Protocol: corev1.ProtocolTCP}}}}
}

func backend(i int, ready corev1.ConditionStatus) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: fmt.Sprintf("p%03d", i), Labels: map[string]string{"app": "x"}}, Spec: corev1.PodSpec{NodeName: "n"},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: fmt.Sprintf("10.0.%d.%d", i/250, i%250+1), Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}}}
}

func slicesOf(b *enginetest.Bench) []*discoveryv1.EndpointSlice {
	return client.ListCached[*discoveryv1.EndpointSlice](b.Cache(client.EndpointSlices, ""), "a", nil)
}

func TestManyEndpointsAndOneChange(t *testing.T) {
	f := clienttest.New()
	var mu sync.Mutex
	touched := map[string]int{}
	f.React = func(verb string, k client.Key, _ client.Object) error {
		if verb == "update" && k.Resource == client.EndpointSlices {
			mu.Lock()
			defer mu.Unlock()
			touched[k.Name]++
		}
		return nil
	}
	for i := range 250 {
		p := backend(i, corev1.ConditionTrue)
		if _, err := f.Create(t.Context(), client.Key{Resource: client.Pods, Namespace: "a", Name: p.Name}, p); err != nil {
			t.Fatal(err)
		}
	}
	b := enginetest.Start(t, f, clock.RealClock{}, endpointslice.New())
	b.Make(client.Services, service("x"))
	total := func(ready bool) (n int) {
		for _, s := range slicesOf(b) {
			if len(s.Endpoints) > 100 {
				t.Errorf("slice %s has %d endpoints", s.Name, len(s.Endpoints))
			}
			for _, e := range s.Endpoints {
				if *e.Conditions.Ready == ready {
					n++
				}
			}
		}
		return n
	}
	b.Until("250 endpoints", func() bool { return total(true) == 250 }, client.EndpointSlices)
	if n := len(slicesOf(b)); n != 3 {
		t.Errorf("%d slices, want 3", n)
	}
	become := func(ready corev1.ConditionStatus) {
		enginetest.Change(b, client.Key{Resource: client.Pods, Namespace: "a", Name: "p120", Subresource: "status"}, func(p *corev1.Pod) {
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}
		})
	}
	become(corev1.ConditionFalse)
	b.Until("one endpoint not ready", func() bool { return total(false) == 1 }, client.EndpointSlices)
	become(corev1.ConditionTrue) // once this is through, so are all writes of the change before
	b.Until("all endpoints ready", func() bool { return total(true) == 250 }, client.EndpointSlices)
	mu.Lock()
	defer mu.Unlock()
	if len(touched) != 1 {
		t.Errorf("slices %v were written, want one", touched)
	}
}

func TestEndpointsFollowPods(t *testing.T) {
	b := enginetest.Start(t, clienttest.New(), clock.RealClock{}, endpointslice.NewEndpoints())
	b.Make(client.Services, service("x"))
	b.Make(client.Pods, backend(1, corev1.ConditionTrue))
	b.Make(client.Pods, backend(2, corev1.ConditionFalse))
	state := func() string {
		e, ok := client.Cached[*corev1.Endpoints](b.Cache(client.Endpoints, ""), "a", "x")
		if !ok || len(e.Subsets) != 1 {
			return ""
		}
		s := e.Subsets[0]
		return fmt.Sprintf("%d ready %d not %d/%s", len(s.Addresses), len(s.NotReadyAddresses), s.Ports[0].Port, s.Ports[0].Name)
	}
	b.Until("one ready and one not", func() bool { return state() == "1 ready 1 not 8080/http" }, client.Endpoints)
	if err := b.Delete(t.Context(), client.Key{Resource: client.Pods, Namespace: "a", Name: "p001"}, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	b.Until("a terminating pod leaves", func() bool { return state() == "0 ready 1 not 8080/http" }, client.Endpoints)
	if err := b.Delete(t.Context(), client.Key{Resource: client.Services, Namespace: "a", Name: "x"}, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	b.Until("gone with the service", func() bool { _, ok := b.Cache(client.Endpoints, "").Get("a", "x"); return !ok }, client.Endpoints)
}

func TestHandwrittenEndpointsAreMirrored(t *testing.T) {
	b := enginetest.Start(t, clienttest.New(), clock.RealClock{}, endpointslice.NewMirroring())
	svc := service("x")
	svc.Spec.Selector = nil
	b.Make(client.Services, svc)
	b.Make(client.Endpoints, &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "x"}, Subsets: []corev1.EndpointSubset{{
		Addresses: []corev1.EndpointAddress{{IP: "192.0.2.1"}, {IP: "2001:db8::1"}}, Ports: []corev1.EndpointPort{{Name: "http", Port: 8080, Protocol: corev1.ProtocolTCP}}}}})
	b.Until("a slice of each family", func() bool {
		families := map[discoveryv1.AddressType]string{}
		for _, s := range slicesOf(b) {
			if len(s.Endpoints) == 1 && s.Labels[discoveryv1.LabelManagedBy] == "endpointslicemirroring-controller.k8s.io" {
				families[s.AddressType] = s.Endpoints[0].Addresses[0]
			}
		}
		return families[discoveryv1.AddressTypeIPv4] == "192.0.2.1" && families[discoveryv1.AddressTypeIPv6] == "2001:db8::1"
	}, client.EndpointSlices)
	enginetest.Change(b, client.Key{Resource: client.Endpoints, Namespace: "a", Name: "x"}, func(e *corev1.Endpoints) { e.Subsets[0].Addresses = e.Subsets[0].Addresses[:1] })
	b.Until("the IPv6 slice is gone", func() bool { s := slicesOf(b); return len(s) == 1 && s[0].AddressType == discoveryv1.AddressTypeIPv4 }, client.EndpointSlices)
	enginetest.Change(b, client.Key{Resource: client.Services, Namespace: "a", Name: "x"}, func(s *corev1.Service) { s.Spec.Selector = map[string]string{"app": "x"} })
	b.Until("no mirror of a service that selects", func() bool { return len(slicesOf(b)) == 0 }, client.EndpointSlices)
}
