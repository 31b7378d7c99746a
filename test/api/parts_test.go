package api

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/apiserver/apitest"
)

// TestPartsOfPods changes pods by their subresources, and binds one by a Binding.
func TestPartsOfPods(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	c, ctx := s.Client(t), t.Context()
	must(c.CoreV1().ServiceAccounts("default").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}))(t)
	pods := c.CoreV1().Pods("default")
	cpu := func(v string) corev1.ResourceList {
		return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(v)}
	}
	p := must(pods.Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{
		Name: "c", Image: "i", Resources: corev1.ResourceRequirements{Requests: cpu("100m"), Limits: cpu("1")}}}}}, metav1.CreateOptions{}))(t)

	debug := p.DeepCopy()
	debug.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "d", Image: "i"}, TargetContainerName: "c"}}
	debug.Labels = map[string]string{"not": "changed"}
	got := must(pods.UpdateEphemeralContainers(ctx, "p", debug, metav1.UpdateOptions{}))(t)
	if len(got.Spec.EphemeralContainers) != 1 || len(got.Labels) != 0 || got.Spec.EphemeralContainers[0].TerminationMessagePath == "" {
		t.Errorf("ephemeral containers: %+v", got)
	}
	gone := got.DeepCopy()
	gone.Spec.EphemeralContainers = nil
	if _, err := pods.UpdateEphemeralContainers(ctx, "p", gone, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "may not be removed") {
		t.Errorf("an ephemeral container is removed: %v", err)
	}

	larger := got.DeepCopy()
	larger.Spec.Containers[0].Resources.Requests = cpu("200m")
	larger.Spec.Containers[0].Image = "not changed here"
	if got = must(pods.UpdateResize(ctx, "p", larger, metav1.UpdateOptions{}))(t); got.Spec.Containers[0].Resources.Requests.Cpu().String() != "200m" || got.Spec.Containers[0].Image != "i" {
		t.Errorf("resized: %+v", got.Spec.Containers[0])
	}
	same := got.DeepCopy()
	same.Spec.Containers[0].Resources.Requests = cpu("1")
	same.Spec.Containers[0].Resources.Requests[corev1.ResourceMemory] = resource.MustParse("1Gi")
	same.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1"), corev1.ResourceMemory: resource.MustParse("1Gi")}
	if _, err := pods.UpdateResize(ctx, "p", same, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "QOS Class may not change") {
		t.Errorf("another quality of service: %v", err)
	}

	err := c.CoreV1().RESTClient().Post().Namespace("default").Resource("bindings").Body(&corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Name: "p"}, Target: corev1.ObjectReference{Kind: "Node", Name: "n"}}).Do(ctx).Error()
	if err != nil {
		t.Fatal(err)
	}
	if bound := must(pods.Get(ctx, "p", metav1.GetOptions{}))(t); bound.Spec.NodeName != "n" {
		t.Errorf("bound to %q", bound.Spec.NodeName)
	}
}

// TestComponentStatuses: what answers is well.
func TestComponentStatuses(t *testing.T) {
	c, ctx := apitest.Start(t, apitest.Options{}).Client(t).CoreV1().ComponentStatuses(), t.Context()
	l := must(c.List(ctx, metav1.ListOptions{}))(t)
	if len(l.Items) != 3 || l.Items[0].Conditions[0].Type != corev1.ComponentHealthy || l.Items[0].Conditions[0].Status != corev1.ConditionTrue {
		t.Errorf("list: %+v", l.Items)
	}
	if one := must(c.Get(ctx, "etcd-0", metav1.GetOptions{}))(t); one.Name != "etcd-0" {
		t.Errorf("get: %+v", one)
	}
	if err := c.Delete(ctx, "etcd-0", metav1.DeleteOptions{}); !apierrors.IsMethodNotSupported(err) {
		t.Errorf("delete: %v", err)
	}
}
