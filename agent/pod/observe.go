package pod

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/agent/logs"
	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/agent/view"
)

// Limits of a termination message.
const (
	maxMessage      = 4096
	maxFallback     = 2048
	fallbackLines   = 80
	containersDir   = "containers"
	terminationFile = "termination"
)

// adopt takes up what survived a restart of the agent: containers that run have
// run their hooks, and what was ready stays so until a probe says otherwise.
func (a *Actor) adopt() {
	if !a.adopted {
		return
	}
	known := map[string]corev1.ContainerStatus{}
	for _, list := range [][]corev1.ContainerStatus{a.pod.Status.InitContainerStatuses, a.pod.Status.ContainerStatuses, a.pod.Status.EphemeralContainerStatuses} {
		for _, st := range list {
			known[st.ContainerID] = st
		}
	}
	for _, list := range a.view.Containers {
		for _, c := range list {
			a.note(c)
			if !c.Running() {
				continue
			}
			a.hooked[c.Id] = true
			for id, st := range known {
				if strings.HasSuffix(id, "://"+c.Id) {
					a.ready[c.Id] = st.Ready
					a.started[c.Id] = st.Started != nil && *st.Started
				}
			}
		}
	}
}

// observe applies a runtime event.
func (a *Actor) observe(ev *runtimeapi.ContainerEventResponse) {
	sandbox := ""
	if s := ev.PodSandboxStatus; s != nil {
		sandbox = s.Id
		a.seeSandbox(s)
	}
	for _, st := range ev.ContainersStatuses {
		a.see(&view.Container{ContainerStatus: st, SandboxID: sandbox})
	}
	if ev.PodSandboxStatus == nil && len(ev.ContainersStatuses) == 0 {
		a.relist()
	}
}

// see takes a container's state unless it is older than what is known: an exited
// container does not come back.
func (a *Actor) see(c *view.Container) {
	if old := a.view.ByID(c.Id); old != nil {
		if old.State > c.State {
			return
		}
		if c.SandboxID == "" {
			c.SandboxID = old.SandboxID
		}
	}
	if c.Metadata.GetName() == "" {
		return
	}
	a.version++
	a.view = a.view.With(c)
	a.note(c)
}

func (a *Actor) seeSandbox(s *runtimeapi.PodSandboxStatus) {
	for _, old := range a.view.Sandboxes {
		if old.Id == s.Id && old.State > s.State {
			return
		}
	}
	if s.State == runtimeapi.PodSandboxState_SANDBOX_READY {
		// Its event may come before the answer to the call that made it.
		a.timeline.mark("sandbox")
	}
	a.version++
	a.view = a.view.WithSandbox(s)
}

// replace takes a complete listing: what is not in it does not exist.
func (a *Actor) replace(v *view.Pod) {
	if v == nil {
		v = &view.Pod{}
	}
	a.view = v
	for _, list := range v.Containers {
		for _, c := range list {
			a.note(c)
		}
	}
}

// relist reads the pod's whole state from the runtime.
func (a *Actor) relist() {
	version := a.version
	a.do("relist", false, func(ctx context.Context) func() { return a.relisting(ctx, version) })
}

// note draws the conclusions from a container's end.
func (a *Actor) note(c *view.Container) {
	if !c.Exited() {
		return
	}
	if p := a.probes[c.Id]; p != nil {
		p.stop()
		delete(a.probes, c.Id)
	}
	delete(a.killed, c.Id)
	if _, read := a.messages[c.Id]; !read {
		a.messages[c.Id] = a.message(c)
	}
}

// terminationPath is the node's file behind a container's termination message.
func (a *Actor) terminationPath(container string, restarts int) string {
	return filepath.Join(a.d.Volumes.PodDir(a.uid()), containersDir, container, terminationFile+strconv.Itoa(restarts))
}

// message reads a container's last words by its termination message policy.
func (a *Actor) message(c *view.Container) string {
	text := ""
	if f, err := os.Open(a.terminationPath(c.Metadata.GetName(), c.Restarts())); err == nil {
		buf := make([]byte, maxMessage)
		n, _ := f.Read(buf)
		text = string(buf[:n])
		f.Close()
	}
	policy := corev1.TerminationMessagePolicy(c.Annotations[podspec.AnnotationMessagePolicy])
	if text == "" && policy == corev1.TerminationMessageFallbackToLogsOnError && c.ExitCode != 0 {
		path := filepath.Join(a.logDir(), podspec.LogPath(c.Metadata.GetName(), c.Restarts()))
		text = logs.TailText(path, fallbackLines, maxFallback)
	}
	if c.Message != "" && text != "" {
		return c.Message + ": " + text
	}
	return c.Message + text
}
