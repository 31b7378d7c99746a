package api

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"knarr.dev/knarr/apiserver/apitest"
	"knarr.dev/knarr/apiserver/registry"
)

func service(name string, typ corev1.ServiceType, ports ...int32) *corev1.Service {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}, Spec: corev1.ServiceSpec{Type: typ}}
	for _, p := range ports {
		svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: fmt.Sprint("p", p), Port: p})
	}
	return svc
}

// A small range is used up to the last address by writers at one time, and what
// a failed create took is given back.
func TestServiceAddresses(t *testing.T) {
	s := apitest.Start(t, apitest.Options{Services: registry.ServiceRanges{ClusterIPs: netip.MustParsePrefix("10.96.0.0/27"), NodePortMin: 30000, NodePortMax: 30009}})
	c, ctx := s.Client(t).CoreV1().Services("default"), t.Context()
	for range 50 {
		bad := service("Not A Name", corev1.ServiceTypeNodePort, 80)
		if _, err := c.Create(ctx, bad, metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
			t.Fatalf("a bad name: %v", err)
		}
		if _, err := c.Create(ctx, service("dry", corev1.ServiceTypeNodePort, 80), metav1.CreateOptions{DryRun: []string{"All"}}); err != nil {
			t.Fatalf("dry run: %v", err)
		}
	}
	const free = 32 - 2 - 1 // without network, broadcast and the service "kubernetes"
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[string]string{}
	for i := range free {
		wg.Go(func() {
			svc, err := c.Create(context.WithoutCancel(ctx), service(fmt.Sprint("s", i), corev1.ServiceTypeClusterIP, 80), metav1.CreateOptions{})
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if other, ok := seen[svc.Spec.ClusterIP]; ok {
				t.Errorf("%s and %s have %s", other, svc.Name, svc.Spec.ClusterIP)
			}
			seen[svc.Spec.ClusterIP] = svc.Name
		})
	}
	wg.Wait()
	if len(seen) != free {
		t.Errorf("%d addresses, want %d", len(seen), free)
	}
	if _, err := c.Create(ctx, service("more", corev1.ServiceTypeClusterIP, 80), metav1.CreateOptions{}); err == nil || !strings.Contains(err.Error(), "range is full") {
		t.Errorf("a full range: %v", err)
	}
	if err := c.Delete(ctx, "s0", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	must(c.Create(ctx, service("more", corev1.ServiceTypeClusterIP, 80), metav1.CreateOptions{}))(t)
	headless := service("headless", corev1.ServiceTypeClusterIP, 80)
	headless.Spec.ClusterIP = corev1.ClusterIPNone
	if o := must(c.Create(ctx, headless, metav1.CreateOptions{}))(t); o.Spec.ClusterIP != "None" || o.Spec.ClusterIPs[0] != "None" {
		t.Errorf("%+v", o.Spec)
	}
}

func TestNodePorts(t *testing.T) {
	s := apitest.Start(t, apitest.Options{Services: registry.ServiceRanges{ClusterIPs: netip.MustParsePrefix("10.96.0.0/16"), NodePortMin: 30000, NodePortMax: 30003}})
	c, ctx := s.Client(t).CoreV1().Services("default"), t.Context()
	fixed := service("fixed", corev1.ServiceTypeNodePort, 80)
	fixed.Spec.Ports[0].NodePort = 30001
	must(c.Create(ctx, fixed, metav1.CreateOptions{}))(t)
	clash := service("clash", corev1.ServiceTypeNodePort, 80)
	clash.Spec.Ports[0].NodePort = 30001
	if _, err := c.Create(ctx, clash, metav1.CreateOptions{}); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "spec.ports[0].nodePort: Invalid value: 30001: provided port is already allocated") {
		t.Errorf("a taken port: %v", err)
	}
	clash.Spec.Ports[0].NodePort = 80
	if _, err := c.Create(ctx, clash, metav1.CreateOptions{}); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "provided port is not in the valid range. The range of valid ports is 30000-30003") {
		t.Errorf("a port outside: %v", err)
	}
	three := must(c.Create(ctx, service("three", corev1.ServiceTypeNodePort, 1, 2, 3), metav1.CreateOptions{}))(t)
	if _, err := c.Create(ctx, service("full", corev1.ServiceTypeNodePort, 1), metav1.CreateOptions{}); err == nil || !strings.Contains(err.Error(), "range is full") {
		t.Errorf("a full range: %v", err)
	}
	// An update that leaves the ports out keeps them; one that changes the type gives them back.
	keep := service("three", corev1.ServiceTypeNodePort, 1, 2, 3)
	kept := must(c.Update(ctx, keep, metav1.UpdateOptions{}))(t)
	for i := range kept.Spec.Ports {
		if kept.Spec.Ports[i].NodePort != three.Spec.Ports[i].NodePort {
			t.Errorf("port %d changed from %d to %d", i, three.Spec.Ports[i].NodePort, kept.Spec.Ports[i].NodePort)
		}
	}
	if kept.Spec.ClusterIP != three.Spec.ClusterIP {
		t.Errorf("address changed from %s to %s", three.Spec.ClusterIP, kept.Spec.ClusterIP)
	}
	o := must(c.Patch(ctx, "three", types.MergePatchType, []byte(`{"spec":{"type":"ClusterIP"}}`), metav1.PatchOptions{}))(t)
	for _, p := range o.Spec.Ports {
		if p.NodePort != 0 {
			t.Errorf("a cluster IP service has port %d", p.NodePort)
		}
	}
	must(c.Create(ctx, service("again", corev1.ServiceTypeNodePort, 1, 2, 3), metav1.CreateOptions{}))(t)
}

func TestNamespaceLifecycle(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	c, ctx := s.Client(t).CoreV1(), t.Context()
	for _, name := range []string{"default", "kube-system", "kube-public"} {
		if err := c.Namespaces().Delete(ctx, name, metav1.DeleteOptions{}); !apierrors.IsForbidden(err) || err.Error() != fmt.Sprintf("namespaces %q is forbidden: this namespace may not be deleted", name) {
			t.Errorf("%v", err)
		}
	}
	s.Namespace(t, "leaving")
	ns := must(c.Namespaces().Get(ctx, "leaving", metav1.GetOptions{}))(t)
	if len(ns.Spec.Finalizers) == 0 { // filled by the kind
		ns.Spec.Finalizers = []corev1.FinalizerName{corev1.FinalizerKubernetes}
		must(c.Namespaces().Finalize(ctx, ns, metav1.UpdateOptions{}))(t)
	}
	if err := c.Namespaces().Delete(ctx, "leaving", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	ns = must(c.Namespaces().Get(ctx, "leaving", metav1.GetOptions{}))(t)
	if ns.Status.Phase != corev1.NamespaceTerminating || ns.DeletionTimestamp == nil {
		t.Errorf("%+v", ns)
	}
	cm := configMap("late")
	cm.Namespace = "leaving"
	_, err := c.ConfigMaps("leaving").Create(ctx, cm, metav1.CreateOptions{})
	if !apierrors.IsForbidden(err) || !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) || err.Error() != `configmaps "late" is forbidden: unable to create new content in namespace leaving because it is being terminated` {
		t.Errorf("%v", err)
	}
	ns.Spec.Finalizers = nil
	must(c.Namespaces().Finalize(ctx, ns, metav1.UpdateOptions{}))(t)
	if _, err := c.Namespaces().Get(ctx, "leaving", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("after the last finalizer: %v", err)
	}
}

// A second deletion may only shorten the time that a running pod has left.
func TestPodGracePeriods(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	c, ctx := s.Client(t).CoreV1(), t.Context()
	must(c.ServiceAccounts("default").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}))(t)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{NodeName: "n", TerminationGracePeriodSeconds: new(int64(30)), Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
	must(c.Pods("default").Create(ctx, pod, metav1.CreateOptions{}))(t)
	for _, step := range []struct {
		ask  *int64
		want int64
	}{{new(int64(60)), 60}, {nil, 60}, {new(int64(90)), 60}, {new(int64(5)), 5}, {nil, 5}} {
		if err := c.Pods("default").Delete(ctx, "p", metav1.DeleteOptions{GracePeriodSeconds: step.ask}); err != nil {
			t.Fatal(err)
		}
		if o := must(c.Pods("default").Get(ctx, "p", metav1.GetOptions{}))(t); *o.DeletionGracePeriodSeconds != step.want {
			t.Errorf("after asking for %v: %d, want %d", step.ask, *o.DeletionGracePeriodSeconds, step.want)
		}
	}
	if err := c.Pods("default").Delete(ctx, "p", metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Pods("default").Get(ctx, "p", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("by force: %v", err)
	}
}

// BenchmarkServices creates Services with addresses, each of which the store must
// sync to disk.
func BenchmarkServices(b *testing.B) {
	for _, writers := range []int{1, 16} {
		b.Run(fmt.Sprint(writers, " writers"), func(b *testing.B) {
			s := apitest.Start(b, apitest.Options{Etcd: true, Unwatched: true})
			res := s.Registry.Resource(corev1.SchemeGroupVersion.WithResource("services"))
			var n atomic.Int64
			var wg sync.WaitGroup
			b.ResetTimer()
			for range writers {
				wg.Go(func() {
					for i := n.Add(1); i <= int64(b.N); i = n.Add(1) {
						q := registry.Request{Resource: res, Namespace: "default"}
						if _, err := s.Registry.Create(b.Context(), q, service(fmt.Sprint("s", i), corev1.ServiceTypeClusterIP, 80)); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}
