package agent

import (
	"os"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/ptr"

	"knarr.dev/knarr/agent/critest"
)

func withoutHostUsers(p *corev1.Pod) {
	p.Spec.HostUsers = ptr.To(false)
	p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
	p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/v"}}
}

func TestPodsWithoutHostUsersHaveTheirOwn(t *testing.T) {
	w := newWorld(t)
	w.cri.Handlers = []*runtimeapi.RuntimeHandler{{Features: &runtimeapi.RuntimeHandlerFeatures{UserNamespaces: true}}}
	w.run()
	w.pod("a", withoutHostUsers)
	w.wait("a", "running", running)
	w.pod("plain", nil)
	w.wait("plain", "running", running)
	w.pod("b", withoutHostUsers)
	w.wait("b", "running", running)
	first := map[string]uint32{}
	for _, box := range w.cri.Sandboxes() {
		o := box.Linux.SecurityContext.NamespaceOptions.UsernsOptions
		if box.Metadata.Name == "plain" {
			if o != nil {
				t.Errorf("an ordinary pod has a user namespace: %v", o)
			}
			continue
		}
		if o.GetMode() != runtimeapi.NamespaceMode_POD || len(o.GetUids()) != 1 || len(o.Gids) != 1 || o.Uids[0].Length != 65536 || o.Gids[0].HostId != o.Uids[0].HostId {
			t.Fatalf("options of the sandbox: %v", o)
		}
		first[box.Metadata.Name] = o.Uids[0].HostId
	}
	if first["a"] == first["b"] || first["a"]%65536 != 0 || first["a"] < 65536 || first["b"] < 65536 {
		t.Errorf("first users: %v", first)
	}
	for _, c := range w.cri.Containers("c") {
		name := c.Config.Labels["io.kubernetes.pod.name"]
		o := c.Config.Linux.SecurityContext.NamespaceOptions.UsernsOptions
		if o.GetUids() == nil {
			if name != "plain" {
				t.Errorf("container of %s has no user namespace", name)
			}
			continue
		}
		if o.Uids[0].HostId != first[name] {
			t.Errorf("container of %s: %v", name, o)
		}
		for _, m := range c.Config.Mounts {
			if len(m.UidMappings) != 1 || m.UidMappings[0].HostId != first[name] || len(m.GidMappings) != 1 {
				t.Errorf("mount %s of %s maps %v", m.ContainerPath, name, m.UidMappings)
			}
		}
	}
	// A restart keeps what is held, and the end gives it back.
	w.stop()
	w.run()
	w.pod("d", withoutHostUsers)
	w.wait("d", "running", running)
	for _, box := range w.cri.Sandboxes() {
		if id := box.Linux.SecurityContext.NamespaceOptions.UsernsOptions.GetUids(); box.Metadata.Name == "d" && (id[0].HostId == first["a"] || id[0].HostId == first["b"]) {
			t.Errorf("pod d was given the users of another: %v", id)
		}
	}
	for _, name := range []string{"a", "b", "d", "plain"} {
		w.delete(name, ptr.To(int64(0)))
		w.gone(name)
	}
	w.runtime("nothing", (*critest.Runtime).Empty)
	w.stop()
	if left, _ := filepath.Glob(filepath.Join(w.cfg.Root, "pods", "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, err := os.Stat(w.cfg.Root); err != nil {
		t.Fatal(err)
	}
}

func TestARuntimeWithoutUserNamespacesRefusesThem(t *testing.T) {
	w := newWorld(t)
	w.run()
	w.pod("a", withoutHostUsers)
	const why = "can't set `spec.hostUsers: false`, runtime does not support user namespaces"
	w.event("Warning FailedCreatePodSandBox " + why)
	w.wait("a", "told why", func(p *corev1.Pod) bool {
		return p != nil && len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].State.Waiting != nil && len(p.Status.ContainerStatuses[0].State.Waiting.Message) > len(why)
	})
	if n := len(w.cri.Sandboxes()); n > 0 {
		t.Errorf("%d sandboxes were made", n)
	}
}
