package agent

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/agent/imagegc"
	"knarr.dev/knarr/client"
)

// A pod uses an image that another pod's secret has pulled only with a credential of its
// own, also after a restart; what is known of an image goes when it does.
func TestPulledImagesAreNotEverybodys(t *testing.T) {
	w := newWorld(t)
	w.cri.OnPull = func(req *runtimeapi.PullImageRequest) error {
		if req.Auth.GetPassword() != "secret" {
			return status.Error(codes.Unknown, "unauthorized")
		}
		return nil
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "pull", UID: "1"}, Type: corev1.SecretTypeDockerConfigJson,
		Data: map[string][]byte{corev1.DockerConfigJsonKey: []byte(`{"auths":{"reg.example.com":{"username":"u","password":"secret"}}}`)}}
	if _, err := w.api.Create(context.Background(), client.Key{Resource: client.Secrets, Namespace: "default"}, secret); err != nil {
		t.Fatal(err)
	}
	pod := func(name string, policy corev1.PullPolicy, secrets ...corev1.LocalObjectReference) {
		w.pod(name, func(p *corev1.Pod) {
			p.Spec.Containers[0].Image, p.Spec.Containers[0].ImagePullPolicy, p.Spec.ImagePullSecrets = "reg.example.com/x:1", policy, secrets
		})
	}
	w.run()
	pod("has", corev1.PullIfNotPresent, corev1.LocalObjectReference{Name: "pull"})
	w.wait("has", "running", running)
	pod("lacks", corev1.PullIfNotPresent)
	w.wait("lacks", "refused", waiting("ErrImagePull"))
	pod("never", corev1.PullNever)
	p := w.wait("never", "refused", waiting("ErrImageNeverPull"))
	if m := p.Status.ContainerStatuses[0].State.Waiting.Message; !strings.Contains(m, "is present with pull policy of Never but cannot be accessed by the pod") {
		t.Errorf("message: %s", m)
	}
	records := func() int {
		t.Helper()
		list, err := os.ReadDir(filepath.Join(w.cfg.Root, "image_manager", "pulled"))
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	if n := records(); n != 1 {
		t.Errorf("%d records", n)
	}
	w.stop()
	a := w.run()
	pod("later", corev1.PullIfNotPresent)
	w.wait("later", "refused", waiting("ErrImagePull"))
	pod("also", corev1.PullNever, corev1.LocalObjectReference{Name: "pull"})
	w.wait("also", "running", running)
	if err := a.removeImage(t.Context(), imagegc.Image{ID: "sha256:reg.example.com/x:1"}); err != nil {
		t.Fatal(err)
	}
	if n := records(); n != 0 {
		t.Errorf("%d records are left", n)
	}
}
