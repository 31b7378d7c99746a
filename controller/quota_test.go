package controller

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/client/clienttest"
	"knarr.dev/knarr/controller/engine/enginetest"
	"knarr.dev/knarr/controller/garbagecollector"
	"knarr.dev/knarr/controller/namespace"
	"knarr.dev/knarr/controller/resourcequota"
)

func TestQuotaIsCounted(t *testing.T) {
	f := clienttest.New() // which serves the kinds that it has objects of
	hard := corev1.ResourceList{}
	for _, n := range []corev1.ResourceName{"pods", "requests.cpu", "count/configmaps", "services", "services.nodeports", "requests.storage"} {
		hard[n] = resource.MustParse("10")
	}
	pod := func(name string, phase corev1.PodPhase) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name}, Status: corev1.PodStatus{Phase: phase}, Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "c", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("500m")}}}}}}
	}
	stock := func(r client.Resource, o client.Object) {
		if _, err := f.Create(t.Context(), client.Key{Resource: r, Namespace: o.GetNamespace(), Name: o.GetName()}, o); err != nil {
			t.Fatal(err)
		}
	}
	stock(client.Pods, pod("runs", corev1.PodRunning))
	stock(client.Pods, pod("also", corev1.PodPending))
	stock(client.Pods, pod("ended", corev1.PodSucceeded))
	elsewhere := pod("elsewhere", corev1.PodRunning)
	elsewhere.Namespace = "b"
	stock(client.Pods, elsewhere)
	stock(client.ConfigMaps, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "m"}})
	stock(client.Services, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "s"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Port: 1}, {Port: 2}}}})
	stock(client.PersistentVolumeClaims, &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "c"}, Spec: corev1.PersistentVolumeClaimSpec{
		Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{"storage": resource.MustParse("3")}}}})
	b := enginetest.Start(t, f, clock.RealClock{}, resourcequota.New())
	b.Make(client.ResourceQuotas, &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "q"}, Spec: corev1.ResourceQuotaSpec{Hard: hard}})
	used := func(want map[corev1.ResourceName]string) func() bool {
		return func() bool {
			q, ok := client.Cached[*corev1.ResourceQuota](b.Cache(client.ResourceQuotas, ""), "a", "q")
			if !ok || len(q.Status.Hard) != len(hard) {
				return false
			}
			for n, v := range want {
				if u := q.Status.Used[n]; u.Cmp(resource.MustParse(v)) != 0 {
					return false
				}
			}
			return true
		}
	}
	b.Until("all is counted", used(map[corev1.ResourceName]string{"pods": "2", "requests.cpu": "1", "count/configmaps": "1", "services": "1", "services.nodeports": "2", "requests.storage": "3"}), client.ResourceQuotas)
	if err := b.Delete(t.Context(), client.Key{Resource: client.ConfigMaps, Namespace: "a", Name: "m"}, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	enginetest.Change(b, client.Key{Resource: client.Pods, Namespace: "a", Name: "also", Subresource: "status"}, func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed })
	b.Until("what went is given back", used(map[corev1.ResourceName]string{"pods": "1", "requests.cpu": "500m", "count/configmaps": "0"}), client.ResourceQuotas)
}

// Pods go before what they use.
func TestPodsLeaveANamespaceFirst(t *testing.T) {
	f := clienttest.New()
	at := metav1.Now()
	for r, o := range map[client.Resource]client.Object{
		client.ConfigMaps: &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "x"}},
		client.Pods:       &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "held", Finalizers: []string{"example.com/hold"}}},
		client.Namespaces: &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a", DeletionTimestamp: &at, Finalizers: []string{"example.com/keep"}}, Spec: corev1.NamespaceSpec{Finalizers: []corev1.FinalizerName{corev1.FinalizerKubernetes}}},
	} {
		if _, err := f.Create(t.Context(), client.Key{Resource: r, Namespace: o.GetNamespace(), Name: o.GetName()}, o); err != nil {
			t.Fatal(err)
		}
	}
	b := enginetest.Start(t, f, clock.RealClock{}, namespace.New())
	b.Until("the pod is waited for", func() bool {
		ns, _ := client.Cached[*corev1.Namespace](b.Cache(client.Namespaces, ""), "", "a")
		for _, c := range ns.Status.Conditions {
			if c.Type == corev1.NamespaceContentRemaining && c.Message == "Some resources are remaining: pods. has 1 resource instances" {
				return true
			}
		}
		return false
	}, client.Namespaces)
	if _, ok := b.Cache(client.ConfigMaps, "").Get("a", "x"); !ok {
		t.Fatal("the config map went before the pod")
	}
	enginetest.Change(b, client.Key{Resource: client.Pods, Namespace: "a", Name: "held"}, func(p *corev1.Pod) { p.Finalizers = nil })
	b.Until("the rest goes too", func() bool { _, ok := b.Cache(client.ConfigMaps, "").Get("a", "x"); return !ok }, client.ConfigMaps)
}

// Objects that own each other in a circle, each blocking its owner's deletion, all go.
func TestCircleIsCollected(t *testing.T) {
	b := enginetest.Start(t, clienttest.New(), clock.RealClock{}, garbagecollector.New())
	names := []string{"one", "two", "three"}
	for _, n := range names {
		b.Make(client.ConfigMaps, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: n}})
	}
	block := true
	for i, n := range names {
		owner := names[(i+2)%3]
		o, _ := b.Cache(client.ConfigMaps, "").Get("a", owner)
		enginetest.Change(b, client.Key{Resource: client.ConfigMaps, Namespace: "a", Name: n}, func(m *corev1.ConfigMap) {
			m.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: owner, UID: o.GetUID(), BlockOwnerDeletion: &block}}
		})
	}
	foreground := metav1.DeletePropagationForeground
	if err := b.Delete(t.Context(), client.Key{Resource: client.ConfigMaps, Namespace: "a", Name: "one"}, metav1.DeleteOptions{PropagationPolicy: &foreground}); err != nil {
		t.Fatal(err)
	}
	b.Until("all are gone", func() bool {
		return len(client.ListCached[*corev1.ConfigMap](b.Cache(client.ConfigMaps, ""), "a", nil)) == 0
	}, client.ConfigMaps)
}
