package agent

import (
	"context"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"knarr.dev/knarr/client"
)

// A container whose image is changed gives way to another without the pod being shown
// as not ready in between, as with kubelets.
func TestANewImageIsOneStep(t *testing.T) {
	w := newWorld(t)
	w.run()
	w.pod("p", nil)
	w.wait("p", "ready", ready)
	var flickered atomic.Pointer[corev1.PodStatus]
	defer w.api.Cache(client.Pods, "").Subscribe(func(ev client.Event) {
		if p := ev.Object.(*corev1.Pod); p.Name == "p" && p.DeletionTimestamp == nil && !ready(p) {
			flickered.CompareAndSwap(nil, &p.Status)
		}
	})()
	k := client.Key{Resource: client.Pods, Namespace: "default", Name: "p"}
	for n := range int32(5) {
		image := []string{"busybox:2", "busybox:1"}[n%2]
		if _, err := w.api.Patch(context.Background(), k, client.Patch{Type: types.StrategicMergePatchType, Data: []byte(`{"spec":{"containers":[{"name":"c","image":"` + image + `"}]}}`)}); err != nil {
			t.Fatal(err)
		}
		w.wait("p", "with "+image, func(p *corev1.Pod) bool {
			return ready(p) && p.Status.ContainerStatuses[0].RestartCount == n+1 && p.Status.ContainerStatuses[0].Image == image
		})
	}
	if s := flickered.Load(); s != nil {
		t.Errorf("in between, the pod was shown as %+v", s)
	}
}
