package agent

import (
	"testing"

	corev1 "k8s.io/api/core/v1"

	"knarr.dev/knarr/agent/critest"
)

// A runtime without events serves too: it is looked at.
func TestRuntimeWithoutEvents(t *testing.T) {
	w := newWorld(t)
	w.cri.NoEvents = true
	w.run()
	w.pod("p", nil)
	w.wait("p", "ready", ready)
	w.cri.Exit("c", 1)
	w.wait("p", "restarted", func(p *corev1.Pod) bool {
		return p != nil && p.Status.ContainerStatuses[0].RestartCount == 1 && ready(p)
	})
	w.delete("p", nil)
	w.gone("p")
	w.runtime("nothing", (*critest.Runtime).Empty)
}
