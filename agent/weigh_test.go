package agent

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

type scales chan int64

func (s scales) Burstable(milli int64) error { s <- milli; return nil }

// Burstable pods weigh together what they request; others do not count.
func TestBurstablePodsWeighWhatTheyRequest(t *testing.T) {
	weighed := make(scales, 100)
	w := newWorld(t, func(c *Config) { c.Classes = weighed })
	w.run()
	weighs := func(want int64) {
		t.Helper()
		for limit := time.After(10 * time.Second); ; {
			select {
			case got := <-weighed:
				if got == want {
					return
				}
			case <-limit:
				t.Fatalf("the burstable pods never weigh %d", want)
			}
		}
	}
	cpu := func(request string, limits corev1.ResourceList) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(request)}, Limits: limits}
		}
	}
	w.pod("a", cpu("300m", nil))
	weighs(300)
	w.pod("effortless", nil)
	same := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("1Mi")}
	w.pod("guaranteed", func(p *corev1.Pod) {
		p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: same, Limits: same}
	})
	w.wait("guaranteed", "ready", ready)
	w.pod("b", cpu("50m", nil))
	weighs(350)
	w.wait("a", "ready", ready)
	w.delete("a", nil)
	weighs(50)
}
