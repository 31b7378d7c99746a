package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/ptr"

	"knarr.dev/knarr/agent/metrics"
	"knarr.dev/knarr/client"
)

type noGroups struct{}

func (noGroups) Apply(string, *runtimeapi.LinuxContainerResources) error { return nil }
func (noGroups) Remove(context.Context, string) error                    { return nil }

// What the agent does for a pod shows in its metrics, under the names that kubelets use.
func TestWorkIsMeasured(t *testing.T) {
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	w := newWorld(t)
	w.cfg.Listen, w.cfg.Healthz, w.cfg.Groups = listen(), listen(), noGroups{}
	w.cfg.Requests, w.cfg.ClientCert = metrics.NewRequests(), func() *x509.Certificate { return &x509.Certificate{NotAfter: time.Now().Add(-time.Hour)} }
	for _, o := range []struct {
		key client.Key
		obj client.Object
	}{
		{client.Key{Resource: client.PersistentVolumes}, &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv"},
			Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: t.TempDir()}}}}},
		{client.Key{Resource: client.PersistentVolumeClaims, Namespace: "default"}, &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "claim"},
			Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv"}, Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound}}},
	} {
		if _, err := w.api.Create(t.Context(), o.key, o.obj); err != nil {
			t.Fatal(err)
		}
	}
	w.run()
	expect := func(what, url string, patterns ...string) {
		t.Helper()
		resp, err := http.Get("http://" + url)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range patterns {
			if !regexp.MustCompile("(?m)^" + p + "$").Match(b) {
				t.Errorf("%s: nothing matches %s in\n%s", what, p, b)
			}
		}
	}
	own, health := w.cfg.Listen.Addr().String(), w.cfg.Healthz.Addr().String()
	w.pod("p", func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{
			{Name: "mine", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
			{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "claim"}}},
		}
	})
	w.wait("p", "running", running)
	expect("the checks", health+"/healthz", "ok")
	expect("a pod that runs", own+"/metrics",
		`kubelet_pod_worker_duration_seconds_count{operation_type="create"} \d+`,
		`kubelet_pleg_relist_duration_seconds_count [1-9]\d*`,
		`storage_operation_duration_seconds_count{migrated="false",operation_name="volume_mount",status="success",volume_plugin="kubernetes.io/empty-dir"} 1`,
		`volume_manager_total_volumes{plugin_name="kubernetes.io/persistent-claim",state="actual_state_of_world"} 1`,
		`volume_manager_total_volumes{plugin_name="kubernetes.io/empty-dir",state="desired_state_of_world"} 1`,
		`kubelet_volume_stats_capacity_bytes{namespace="default",persistentvolumeclaim="claim"} [1-9].*`,
		`kubelet_cgroup_manager_duration_seconds_count{operation_type="update"} 1`,
		`kubelet_certificate_manager_client_ttl_seconds -3600\..*`,
		`kubelet_node_config_error 0`,
		`kubernetes_build_info{.*git_version="v1.36.3\+knarr",go_version="go.*",major="1",minor="36",platform="linux/.*"} 1`)
	w.delete("p", ptr.To(int64(1)))
	w.gone("p")
	expect("a pod that is gone", own+"/metrics",
		`kubelet_pod_start_sli_duration_seconds_count 1`, `kubelet_pod_start_total_duration_seconds_count 1`,
		`kubelet_pod_worker_duration_seconds_count{operation_type="kill"} [1-9]\d*`)
}

// The server's certificate is known whether or not it was parsed before.
func TestServerCertificateIsKnown(t *testing.T) {
	s := httptest.NewTLSServer(http.NotFoundHandler())
	defer s.Close()
	for what, c := range map[string]*tls.Certificate{"parsed": {Leaf: s.Certificate()}, "not parsed": {Certificate: s.TLS.Certificates[0].Certificate}} {
		get := func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c, nil }
		for _, conf := range []*tls.Config{{Certificates: []tls.Certificate{*c}}, {GetCertificate: get}} {
			if got := leaf(conf); got == nil || !got.Equal(s.Certificate()) {
				t.Errorf("%s: %v", what, got)
			}
		}
	}
	none := func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, errors.New("not approved yet") }
	for _, conf := range []*tls.Config{{}, {GetCertificate: none}} {
		if got := leaf(conf); got != nil {
			t.Errorf("without any: %v", got)
		}
	}
}
