package controller

import (
	"fmt"
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	clocktesting "k8s.io/utils/clock/testing"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/client/clienttest"
	"knarr.dev/knarr/controller/deployment"
	"knarr.dev/knarr/controller/engine"
	"knarr.dev/knarr/controller/engine/enginetest"
	"knarr.dev/knarr/controller/replicaset"
)

func deploymentKey(name string) client.Key {
	return client.Key{Resource: client.Deployments, Namespace: "a", Name: name}
}

// settled tells whether a rollout is complete at a revision.
func settled(b *enginetest.Bench, name, revision string, replicas int32) func() bool {
	return func() bool {
		d := get[*appsv1.Deployment](b, client.Deployments, name)
		return d.Annotations["deployment.kubernetes.io/revision"] == revision && d.Status.AvailableReplicas == replicas &&
			d.Status.UpdatedReplicas == replicas && d.Status.Replicas == replicas && progressing(d) == "NewReplicaSetAvailable"
	}
}

func TestRecreateNeverRunsTwoTemplates(t *testing.T) {
	b := enginetest.Start(t, clienttest.New(), clock.RealClock{}, deployment.New(), replicaset.New())
	kubelet(t, b)
	d := deploy("web", 3, "v1")
	d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}
	b.Make(client.Deployments, d)
	b.Until("first rollout", settled(b, "web", "1", 3), client.Deployments)
	mixed := make(chan string, 1)
	defer b.Cache(client.Pods, "").Subscribe(func(client.Event) {
		images := map[string]bool{}
		for _, p := range client.ListCached[*corev1.Pod](b.Cache(client.Pods, ""), "a", nil) {
			images[p.Spec.Containers[0].Image] = true
		}
		if len(images) > 1 {
			select {
			case mixed <- fmt.Sprint(images):
			default:
			}
		}
	})()
	enginetest.Change(b, deploymentKey("web"), func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = "v2" })
	b.Until("second rollout", settled(b, "web", "2", 3), client.Deployments)
	select {
	case images := <-mixed:
		t.Errorf("pods of %s existed at once", images)
	default:
	}
}

func TestPausedDeploymentScalesButDoesNotRoll(t *testing.T) {
	b := enginetest.Start(t, clienttest.New(), clock.RealClock{}, deployment.New(), replicaset.New())
	kubelet(t, b)
	b.Make(client.Deployments, deploy("web", 2, "v1"))
	b.Until("first rollout", settled(b, "web", "1", 2), client.Deployments)
	enginetest.Change(b, deploymentKey("web"), func(d *appsv1.Deployment) { d.Spec.Paused = true })
	b.Until("paused", func() bool {
		return progressing(get[*appsv1.Deployment](b, client.Deployments, "web")) == "DeploymentPaused"
	}, client.Deployments)
	four := int32(4)
	enginetest.Change(b, deploymentKey("web"), func(d *appsv1.Deployment) {
		d.Spec.Template.Spec.Containers[0].Image, d.Spec.Replicas = "v2", &four
	})
	b.Until("scaled while paused", func() bool {
		d := get[*appsv1.Deployment](b, client.Deployments, "web")
		return d.Status.ObservedGeneration == d.Generation && d.Status.AvailableReplicas == 4
	}, client.Deployments)
	if sets := client.ListCached[*appsv1.ReplicaSet](b.Cache(client.ReplicaSets, ""), "a", nil); len(sets) != 1 {
		t.Errorf("%d replica sets while paused, want the first one alone", len(sets))
	}
	enginetest.Change(b, deploymentKey("web"), func(d *appsv1.Deployment) { d.Spec.Paused = false })
	b.Until("rolled out after resuming", settled(b, "web", "2", 4), client.Deployments)
}

func TestSilentRolloutTimesOut(t *testing.T) {
	clk := clocktesting.NewFakeClock(time.Now())
	f := clienttest.New()
	f.Now = clk.Now
	b := enginetest.Start(t, f, clk, deployment.New(), replicaset.New()) // no kubelet: the pods never become ready
	b.Make(client.Deployments, deploy("web", 1, "v1"))
	timedOut := func() bool {
		return progressing(get[*appsv1.Deployment](b, client.Deployments, "web")) == "ProgressDeadlineExceeded"
	}
	advance(t, clk, time.Minute, timedOut)
	b.Until("timed out", timedOut, client.Deployments)
	for _, c := range get[*appsv1.Deployment](b, client.Deployments, "web").Status.Conditions {
		if c.Type == appsv1.DeploymentProgressing && (c.Status != corev1.ConditionFalse || len(c.Message) < 12 || c.Message[:12] != `ReplicaSet "`) {
			t.Errorf("condition %+v", c)
		}
	}
}

// advance steps the clock until done: controllers that wait go on.
func advance(t *testing.T, clk *clocktesting.FakeClock, step time.Duration, done func() bool) {
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for !done() {
			select {
			case <-stop:
				return
			case <-tick.C:
				if clk.HasWaiters() {
					clk.Step(step)
				}
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-stopped })
}

func TestHistoryIsLimited(t *testing.T) {
	b := enginetest.Start(t, clienttest.New(), clock.RealClock{}, deployment.New(), replicaset.New())
	kubelet(t, b)
	d := deploy("web", 1, "v1")
	*d.Spec.RevisionHistoryLimit = 1
	b.Make(client.Deployments, d)
	for i := 1; i <= 4; i++ {
		b.Until(fmt.Sprint("revision ", i), settled(b, "web", fmt.Sprint(i), 1), client.Deployments)
		if i < 4 {
			enginetest.Change(b, deploymentKey("web"), func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = fmt.Sprint("v", i+1) })
		}
	}
	revisions := func() (out []string) {
		for _, rs := range client.ListCached[*appsv1.ReplicaSet](b.Cache(client.ReplicaSets, ""), "a", nil) {
			out = append(out, rs.Annotations["deployment.kubernetes.io/revision"])
		}
		slices.Sort(out)
		return out
	}
	b.Until("the present and one old revision are left", func() bool { return slices.Equal(revisions(), []string{"3", "4"}) }, client.ReplicaSets)
}

func TestHashCollisionTakesAnotherName(t *testing.T) {
	f := clienttest.New()
	first := enginetest.Start(t, f, clock.RealClock{}, deployment.New())
	d := deploy("web", 1, "v1")
	first.Make(client.Deployments, d)
	var name string
	first.Until("replica set", func() bool {
		for _, rs := range client.ListCached[*appsv1.ReplicaSet](first.Cache(client.ReplicaSets, ""), "a", nil) {
			name = rs.Name
		}
		return name != ""
	}, client.ReplicaSets)

	// The name is taken by a set of another template that nobody owns.
	f2 := clienttest.New()
	other := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name}, Spec: appsv1.ReplicaSetSpec{
		Replicas: new(int32), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"other": "x"}},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"other": "x"}}}}}
	if _, err := f2.Create(t.Context(), client.Key{Resource: client.ReplicaSets, Namespace: "a", Name: name}, other); err != nil {
		t.Fatal(err)
	}
	b := enginetest.Start(t, f2, clock.RealClock{}, deployment.New())
	b.Make(client.Deployments, deploy("web", 1, "v1"))
	b.Until("another name", func() bool {
		d := get[*appsv1.Deployment](b, client.Deployments, "web")
		n := len(client.ListCached[*appsv1.ReplicaSet](b.Cache(client.ReplicaSets, ""), "a", nil))
		return n == 2 && d.Status.CollisionCount != nil && *d.Status.CollisionCount == 1
	}, client.Deployments, client.ReplicaSets)
}

func TestReplicationController(t *testing.T) {
	b := enginetest.Start(t, clienttest.New(), clock.RealClock{}, replicaset.NewReplication())
	kubelet(t, b)
	l := map[string]string{"app": "x"}
	n := int32(3)
	b.Make(client.ReplicationControllers, &corev1.ReplicationController{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "x"}, Spec: corev1.ReplicationControllerSpec{
		Replicas: &n, Selector: l, Template: &corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: l}}}})
	k := client.Key{Resource: client.ReplicationControllers, Namespace: "a", Name: "x"}
	count := func(want int32) func() bool {
		return func() bool {
			rc := get[*corev1.ReplicationController](b, client.ReplicationControllers, "x")
			active := 0
			for _, p := range client.ListCached[*corev1.Pod](b.Cache(client.Pods, ""), "a", nil) {
				if ref := metav1.GetControllerOf(p); engine.Active(p) && ref != nil && ref.Kind == "ReplicationController" && ref.APIVersion == "v1" {
					active++
				}
			}
			return rc.Status.ReadyReplicas == want && rc.Status.AvailableReplicas == want && rc.Status.ObservedGeneration == rc.Generation && active == int(want)
		}
	}
	b.Until("three ready pods", count(3), client.ReplicationControllers, client.Pods)
	enginetest.Change(b, k, func(rc *corev1.ReplicationController) { one := int32(1); rc.Spec.Replicas = &one })
	b.Until("one pod", count(1), client.ReplicationControllers, client.Pods)
}
