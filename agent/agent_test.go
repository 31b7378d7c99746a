package agent

import (
	"testing"

	corev1 "k8s.io/api/core/v1"

	"knarr.dev/knarr/agent/critest"
)

func TestPodLives(t *testing.T) {
	w := newWorld(t)
	w.run()
	w.pod("p", nil)
	p := w.wait("p", "ready", ready)
	if !running(p) || p.Status.PodIP != "10.9.0.1" || p.Status.HostIP != "192.0.2.1" || p.Status.StartTime == nil || p.Status.QOSClass != corev1.PodQOSBestEffort {
		t.Fatalf("status: %+v", p.Status)
	}
	st := p.Status.ContainerStatuses[0]
	if !st.Ready || st.Started == nil || !*st.Started || st.State.Running == nil || st.ContainerID == "" || st.ImageID == "" {
		t.Fatalf("container status: %+v", st)
	}
	for _, e := range []string{`Normal Pulling Pulling image "busybox:1"`, `Normal Pulled Successfully pulled image "busybox:1" in `,
		"Normal Created Container created", "Normal Started Container started"} {
		w.event(e)
	}
	w.delete("p", nil)
	w.gone("p")
	w.event("Normal Killing Stopping container c")
	w.runtime("nothing", (*critest.Runtime).Empty)
}
