package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/agent/critest"
	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/client"
)

// Files run pods; mirrors show them, come back, and go with the files.
func TestStaticPods(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	w.cfg.StaticPodPath = dir
	manifest := "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, image: 'busybox:1'}]}\n"
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "web.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(manifest)
	w.run()
	mirror := w.wait("web-n1", "ready", ready)
	hash := mirror.Annotations[podspec.AnnotationConfigHash]
	if hash == "" || mirror.Annotations[corev1.MirrorPodAnnotationKey] != hash || string(mirror.UID) == hash ||
		len(mirror.OwnerReferences) != 1 || mirror.OwnerReferences[0].Kind != "Node" || mirror.Spec.NodeName != "n1" || mirror.Status.PodIP == "" {
		t.Fatalf("mirror: %+v", mirror)
	}
	container := w.cri.Containers("c")[0].Status
	if container.Labels[podspec.LabelPodUID] != hash {
		t.Errorf("labels: %v", container.Labels)
	}
	// Deleting the mirror stops nothing, and it comes back.
	old := mirror.UID
	w.delete("web-n1", nil)
	w.wait("web-n1", "shown again", func(p *corev1.Pod) bool { return p != nil && p.UID != old && ready(p) })
	if now := w.cri.Containers("c"); len(now) != 1 || now[0].Status.Id != container.Id {
		t.Errorf("the container was touched: %v", w.cri.Calls())
	}
	// An agent that begins anew takes the pod up.
	w.stop()
	w.run()
	w.cri.Exit("c", 1)
	w.wait("web-n1", "restarted", func(p *corev1.Pod) bool {
		return p != nil && len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].RestartCount == 1 && ready(p)
	})
	// Another content is another pod.
	write(strings.Replace(manifest, "name: web}", "name: web, labels: {v: '2'}}", 1))
	w.wait("web-n1", "replaced", func(p *corev1.Pod) bool {
		return p != nil && p.Labels["v"] == "2" && p.Annotations[podspec.AnnotationConfigHash] != hash && ready(p)
	})
	if err := os.Remove(filepath.Join(dir, "web.yaml")); err != nil {
		t.Fatal(err)
	}
	w.gone("web-n1")
	w.runtime("nothing", (*critest.Runtime).Empty)
}

// A node without static pods deletes the mirrors of earlier ones.
func TestStaleMirrorsGo(t *testing.T) {
	w := newWorld(t)
	w.create(client.Pods, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "old-n1", UID: "m", Annotations: map[string]string{corev1.MirrorPodAnnotationKey: "x"}},
		Spec: corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: "c", Image: "i"}}}})
	w.run()
	w.gone("old-n1")
	if len(w.cri.Containers("")) > 0 {
		t.Error("a mirror was run")
	}
}
