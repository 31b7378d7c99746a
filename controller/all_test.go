package controller

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/clock"
	clocktesting "k8s.io/utils/clock/testing"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/client/clienttest"
	"knarr.dev/knarr/controller/deployment"
	"knarr.dev/knarr/controller/endpointslice"
	"knarr.dev/knarr/controller/engine"
	"knarr.dev/knarr/controller/engine/enginetest"
	"knarr.dev/knarr/controller/garbagecollector"
	"knarr.dev/knarr/controller/nodelifecycle"
	"knarr.dev/knarr/controller/replicaset"
)

func deploy(name string, replicas int32, image string) *appsv1.Deployment {
	l := map[string]string{"app": name}
	surge, unavailable := intstr.FromString("25%"), intstr.FromString("25%")
	deadline, history := int32(600), int32(10)
	return &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name}, Spec: appsv1.DeploymentSpec{
		Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: l}, ProgressDeadlineSeconds: &deadline, RevisionHistoryLimit: &history,
		Strategy: appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType, RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &surge, MaxUnavailable: &unavailable}},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: l}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: image}}}},
	}}
}

// kubelet makes every pod ready, and gone when it is deleted.
func kubelet(t *testing.T, b *enginetest.Bench) {
	n := 0
	cancel := b.Cache(client.Pods, "").Subscribe(func(ev client.Event) {
		pod := ev.Object.(*corev1.Pod)
		if ev.Type == client.Deleted || engine.Ready(pod) {
			return
		}
		k := client.Key{Resource: client.Pods, Namespace: pod.Namespace, Name: pod.Name}
		n++
		next := pod.DeepCopy()
		next.ResourceVersion = ""
		next.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: fmt.Sprintf("10.0.%d.%d", n/250, n%250+1),
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()}}}
		_, _ = b.Update(t.Context(), k.Sub("status"), next) // it may have been deleted meanwhile
	})
	t.Cleanup(cancel)
}

func get[T client.Object](b *enginetest.Bench, r client.Resource, name string) T {
	o, _ := client.Cached[T](b.Cache(r, ""), "a", name)
	return o
}

func progressing(d *appsv1.Deployment) string {
	if d == nil {
		return ""
	}
	for _, c := range d.Status.Conditions {
		if c.Type == appsv1.DeploymentProgressing {
			return c.Reason
		}
	}
	return ""
}

func TestDeploymentRollsOutAndBack(t *testing.T) {
	f := clienttest.New()
	// The double serves only resources that have objects.
	for r, o := range map[client.Resource]client.Object{client.Deployments: &appsv1.Deployment{}, client.ReplicaSets: &appsv1.ReplicaSet{}, client.Pods: &corev1.Pod{}} {
		o.SetName("other")
		if dep, ok := o.(*appsv1.Deployment); ok {
			dep.Spec.Paused = true
		}
		if rs, ok := o.(*appsv1.ReplicaSet); ok {
			rs.Spec.Replicas = new(int32)
		}
		if _, err := f.Create(t.Context(), client.Key{Resource: r, Namespace: "other"}, o); err != nil {
			t.Fatal(err)
		}
	}
	b := enginetest.Start(t, f, clock.RealClock{}, deployment.New(), replicaset.New(), garbagecollector.New())
	kubelet(t, b)
	b.Make(client.Deployments, deploy("web", 4, "v1"))
	k := client.Key{Resource: client.Deployments, Namespace: "a", Name: "web"}
	done := func(rev string) func() bool {
		return func() bool {
			d := get[*appsv1.Deployment](b, client.Deployments, "web")
			return d.Annotations["deployment.kubernetes.io/revision"] == rev && d.Status.AvailableReplicas == 4 && d.Status.UpdatedReplicas == 4 &&
				d.Status.Replicas == 4 && progressing(d) == "NewReplicaSetAvailable"
		}
	}
	b.Until("first rollout", done("1"), client.Deployments)
	var mu sync.Mutex
	low, high := 99, 0
	defer b.Cache(client.Pods, "").Subscribe(func(client.Event) {
		n := 0
		b.Cache(client.Pods, "").List("a", nil, func(o client.Object) bool {
			if engine.Active(o.(*corev1.Pod)) {
				n++
			}
			return true
		})
		mu.Lock()
		defer mu.Unlock()
		low, high = min(low, n), max(high, n)
	})()
	enginetest.Change(b, k, func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = "v2" })
	b.Until("second rollout", done("2"), client.Deployments)
	mu.Lock()
	lowest, highest := low, high
	mu.Unlock()
	if lowest < 3 || highest > 5 {
		t.Errorf("pods went from %d to %d, want within 3 to 5", lowest, highest)
	}
	enginetest.Change(b, k, func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = "v1" })
	b.Until("rollback", done("3"), client.Deployments)
	sets := client.ListCached[*appsv1.ReplicaSet](b.Cache(client.ReplicaSets, ""), "a", nil)
	if len(sets) != 2 {
		t.Errorf("%d replica sets, want 2: the rollback must use the first one", len(sets))
	}
	for _, rs := range sets {
		if h := rs.Annotations["deployment.kubernetes.io/revision-history"]; rs.Annotations["deployment.kubernetes.io/revision"] == "3" && h != "1" {
			t.Errorf("revision history %q, want 1", h)
		}
		if rs.Name != "web-"+rs.Labels[appsv1.DefaultDeploymentUniqueLabelKey] {
			t.Errorf("replica set %s does not have its hash %s in its name", rs.Name, rs.Labels[appsv1.DefaultDeploymentUniqueLabelKey])
		}
	}
	if !b.Events.Has("Normal ScalingReplicaSet Scaled up replica set "+sets[0].Name+" from 0 to 4") && !b.Events.Has("Normal ScalingReplicaSet Scaled up replica set "+sets[1].Name+" from 0 to 4") {
		t.Errorf("no event of the first scaling in %s", b.Events)
	}
	if err := b.Delete(t.Context(), k, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	b.Until("everything collected", func() bool {
		return len(client.ListCached[client.Object](b.Cache(client.Pods, ""), "a", nil)) == 0 && len(client.ListCached[client.Object](b.Cache(client.ReplicaSets, ""), "a", nil)) == 0
	}, client.Pods, client.ReplicaSets)
}

func TestReplicaSetAdoptsAndReplaces(t *testing.T) {
	f := clienttest.New()
	b := enginetest.Start(t, f, clock.RealClock{}, replicaset.New())
	l := map[string]string{"app": "x"}
	b.Make(client.Pods, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "orphan", Labels: l}})
	three := int32(3)
	b.Make(client.ReplicaSets, &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "x"}, Spec: appsv1.ReplicaSetSpec{
		Replicas: &three, Selector: &metav1.LabelSelector{MatchLabels: l}, Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: l}}}})
	b.Until("three pods with the orphan", func() bool {
		rs := get[*appsv1.ReplicaSet](b, client.ReplicaSets, "x")
		return rs.Status.Replicas == 3 && metav1.IsControlledBy(get[*corev1.Pod](b, client.Pods, "orphan"), rs)
	}, client.ReplicaSets, client.Pods)
	enginetest.Change(b, client.Key{Resource: client.Pods, Namespace: "a", Name: "orphan"}, func(p *corev1.Pod) { p.Labels = nil })
	b.Until("the pod without its label is released and replaced", func() bool {
		return metav1.GetControllerOf(get[*corev1.Pod](b, client.Pods, "orphan")) == nil && len(client.ListCached[*corev1.Pod](b.Cache(client.Pods, ""), "a", nil)) == 4
	}, client.Pods)
}

func TestTerminatingEndpointServesUntilItIsGone(t *testing.T) {
	b := enginetest.Start(t, clienttest.New(), clock.RealClock{}, endpointslice.New())
	l := map[string]string{"app": "x"}
	b.Make(client.Services, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "x"}, Spec: corev1.ServiceSpec{Selector: l,
		Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("web"), Protocol: corev1.ProtocolTCP}}}})
	pod := b.Make(client.Pods, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "p", Labels: l},
		Spec: corev1.PodSpec{NodeName: "n", Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8080, Protocol: corev1.ProtocolTCP}}}}}}).DeepCopyObject().(*corev1.Pod)
	pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.9", Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
	k := client.Key{Resource: client.Pods, Namespace: "a", Name: "p"}
	if _, err := b.Update(t.Context(), k.Sub("status"), pod); err != nil {
		t.Fatal(err)
	}
	state := func() string {
		var out []string
		for _, s := range client.ListCached[*discoveryv1.EndpointSlice](b.Cache(client.EndpointSlices, ""), "a", nil) {
			for _, e := range s.Endpoints {
				out = append(out, fmt.Sprintf("%s:%d ready=%t serving=%t terminating=%t", e.Addresses[0], *s.Ports[0].Port, *e.Conditions.Ready, *e.Conditions.Serving, *e.Conditions.Terminating))
			}
		}
		return strings.Join(out, ",")
	}
	b.Until("ready endpoint", func() bool { return state() == "10.0.0.9:8080 ready=true serving=true terminating=false" }, client.EndpointSlices)
	if err := b.Delete(t.Context(), k, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	b.Until("terminating endpoint", func() bool { return state() == "10.0.0.9:8080 ready=false serving=true terminating=true" }, client.EndpointSlices)
}

func TestSilentNodeIsTaintedAndRecovers(t *testing.T) {
	clk := clocktesting.NewFakeClock(time.Now())
	b := enginetest.Start(t, clienttest.New(), clk, nodelifecycle.New())
	b.Make(client.Nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}}})
	tainted := func() bool {
		n, _ := client.Cached[*corev1.Node](b.Cache(client.Nodes, ""), "", "n")
		return len(n.Spec.Taints) == 2 && n.Spec.Taints[1].Key == corev1.TaintNodeUnreachable && n.Spec.Taints[1].Effect == corev1.TaintEffectNoExecute
	}
	stop := make(chan struct{})
	stepped := make(chan struct{})
	go func() { // the clock moves on whenever the controller waits for it
		defer close(stepped)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				if !tainted() {
					clk.Step(time.Second)
				}
			}
		}
	}()
	b.Until("unreachable", tainted, client.Nodes)
	close(stop)
	<-stepped
	enginetest.Change(b, client.Key{Resource: client.Nodes, Name: "n", Subresource: "status"}, func(n *corev1.Node) {
		n.Status.Conditions[0] = corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.NewTime(clk.Now())}
	})
	b.Until("recovered", func() bool {
		n, _ := client.Cached[*corev1.Node](b.Cache(client.Nodes, ""), "", "n")
		return len(n.Spec.Taints) == 0
	}, client.Nodes)
}

func TestForegroundAndOrphan(t *testing.T) {
	f := clienttest.New()
	yes := true
	object := func(name string, owner client.Object) *corev1.ConfigMap {
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name}}
		if owner != nil {
			cm.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: owner.GetName(), UID: owner.GetUID(), BlockOwnerDeletion: &yes}}
		}
		return cm
	}
	mark := func(finalizer string) *corev1.ConfigMap {
		cm := object("owner-"+finalizer, nil)
		cm.Finalizers = []string{finalizer}
		return cm
	}
	for _, finalizer := range []string{metav1.FinalizerDeleteDependents, metav1.FinalizerOrphanDependents} {
		owner, err := f.Create(t.Context(), client.Key{Resource: client.ConfigMaps, Namespace: "a"}, mark(finalizer))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Create(t.Context(), client.Key{Resource: client.ConfigMaps, Namespace: "a"}, object("child-"+finalizer, owner)); err != nil {
			t.Fatal(err)
		}
	}
	b := enginetest.Start(t, f, clock.RealClock{}, garbagecollector.New())
	for _, finalizer := range []string{metav1.FinalizerDeleteDependents, metav1.FinalizerOrphanDependents} {
		if err := b.Delete(t.Context(), client.Key{Resource: client.ConfigMaps, Namespace: "a", Name: "owner-" + finalizer}, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	b.Until("owners gone, one child deleted and the other free", func() bool {
		left := client.ListCached[*corev1.ConfigMap](b.Cache(client.ConfigMaps, ""), "a", nil)
		return len(left) == 1 && left[0].Name == "child-"+metav1.FinalizerOrphanDependents && len(left[0].OwnerReferences) == 0
	}, client.ConfigMaps)
}

func TestGraphNamesEveryController(t *testing.T) {
	g := engine.Graph(All(Options{}))
	for _, c := range All(Options{}) {
		if !strings.Contains(g, c.Name+": ") || len(engine.Rules(c)) == 0 {
			t.Errorf("%s is missing in the graph or has no rules:\n%s", c.Name, g)
		}
	}
}
