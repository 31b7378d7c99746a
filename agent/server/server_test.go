package server

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/agent/critest"
	"knarr.dev/knarr/agent/metrics"
	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/agent/usage"
	"knarr.dev/knarr/agent/view"
	"knarr.dev/knarr/cri"
)

// fakeRuntime adds statistics and streaming addresses to the fake.
type fakeRuntime struct {
	runtimeapi.RuntimeServiceClient
	stream  string
	metrics *metricsOf
}

func (r fakeRuntime) ListContainerStats(context.Context, *runtimeapi.ListContainerStatsRequest, ...grpc.CallOption) (*runtimeapi.ListContainerStatsResponse, error) {
	u := func(n uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: n} }
	return &runtimeapi.ListContainerStatsResponse{Stats: []*runtimeapi.ContainerStats{{
		Attributes: &runtimeapi.ContainerAttributes{Id: "c1", Labels: map[string]string{podspec.LabelPodUID: "u", podspec.LabelContainer: "c"}},
		Cpu:        &runtimeapi.CpuUsage{Timestamp: 1e9, UsageCoreNanoSeconds: u(2e9), Psi: &runtimeapi.PsiStats{Some: &runtimeapi.PsiData{Total: 15e8, Avg10: 2.5}, Full: &runtimeapi.PsiData{Total: 5e8}}},
		Memory:     &runtimeapi.MemoryUsage{Timestamp: 1e9, WorkingSetBytes: u(4096)}, Io: &runtimeapi.IoUsage{Timestamp: 1e9},
	}}}, nil
}

func (r fakeRuntime) Exec(_ context.Context, req *runtimeapi.ExecRequest, _ ...grpc.CallOption) (*runtimeapi.ExecResponse, error) {
	return &runtimeapi.ExecResponse{Url: r.stream + "/" + req.ContainerId + "?" + url.Values{"cmd": req.Cmd}.Encode()}, nil
}

type fixture struct {
	*httptest.Server
	dir     string
	denied  bool
	stuck   error
	metrics metricsOf
	server  *Server
}

func serve(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{dir: t.TempDir()}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n", UID: "u"},
		Spec:   corev1.PodSpec{Containers: []corev1.Container{{Name: "c"}, {Name: "w"}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{{Name: "w", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff"}}}}}}
	ct := func(id, restarts string, state runtimeapi.ContainerState) *view.Container {
		return &view.Container{ContainerStatus: &runtimeapi.ContainerStatus{Id: id, Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, State: state,
			Annotations: map[string]string{podspec.AnnotationRestartCount: restarts}}}
	}
	v := (&view.Pod{}).WithSandbox(&runtimeapi.PodSandboxStatus{Id: "s1"}).With(ct("c0", "0", runtimeapi.ContainerState_CONTAINER_EXITED)).With(ct("c1", "1", runtimeapi.ContainerState_CONTAINER_RUNNING))
	dir := filepath.Join(podspec.LogDir(f.dir, "n", "p", "u"), "c")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"0.log": "2026-01-01T00:00:00Z stdout F old\n", "1.log": "2026-01-01T00:00:00Z stdout F a\n2026-01-01T00:00:01Z stdout F b\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// The runtime's streaming server: it upgrades and echoes one line.
	stream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		line, _ := rw.ReadString('\n')
		_, _ = io.WriteString(conn, r.URL.Path+" "+r.URL.Query().Get("cmd")+" "+line)
	}))
	t.Cleanup(stream.Close)
	base := critest.New().Client(t)
	rt := &cri.Client{Runtime: fakeRuntime{base.Runtime, stream.URL, &f.metrics}, Images: base.Images}
	pods := func() []*corev1.Pod { return []*corev1.Pod{pod} }
	count := metrics.New("v1.36.3", "abc")
	count.Probed(pod, "c", "Liveness", "failed", time.Millisecond)
	count.Operation("ListPodSandbox", time.Millisecond, errors.New("x"))
	if err := os.WriteFile(filepath.Join(f.dir, "sys.log"), []byte("from the system"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := New(Config{CRI: rt, Pods: pods, Metrics: count, SystemLogs: f.dir, CgroupRoot: "/kubepods", Settings: map[string]any{"maxPods": 7},
		Usage:   usage.New(usage.Config{NodeName: "node", CRI: rt, Pods: pods, Volumes: func(string) []string { return nil }, LogRoot: f.dir, Root: f.dir, Clock: clock.RealClock{}}),
		Node:    func() *corev1.Node { return &corev1.Node{} },
		Find:    func(ns, name, uid string) (*corev1.Pod, *view.Pod, bool) { return pod, v, ns == "n" && name == "p" },
		Changed: func(string) <-chan struct{} { return nil }, LogRoot: f.dir, NodeName: "node", Clock: clock.RealClock{}, Log: slog.New(slog.DiscardHandler),
		Alive: func() error { return f.stuck },
		Authorize: func(*http.Request) error {
			if f.denied {
				return errors.New("no")
			}
			return nil
		}})
	f.Server, f.server = httptest.NewServer(s), s
	t.Cleanup(f.Close)
	return f
}

func (f *fixture) get(t *testing.T, path string) (int, string) {
	t.Helper()
	resp, err := http.Get(f.URL + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestLogs(t *testing.T) {
	f := serve(t)
	for path, want := range map[string]struct {
		code int
		text string
	}{
		"/containerLogs/n/p/c":                             {200, "a\nb\n"},
		"/containerLogs/n/p/c?tailLines=1&timestamps=true": {200, "2026-01-01T00:00:01Z b\n"},
		"/containerLogs/n/p/c?previous=true":               {200, "old\n"},
		"/containerLogs/n/p/c?tailLines=x":                 {400, "invalid tailLines"},
		"/containerLogs/n/p/w":                             {400, `container "w" in pod "p" is waiting to start: trying and failing to pull image`},
		"/containerLogs/n/p/w?previous=true":               {400, `previous terminated container "w" in pod "p" not found`},
		"/containerLogs/n/p/none":                          {404, `container "none" not found in pod "p"`},
		"/containerLogs/n/none/c":                          {404, "does not exist"},
	} {
		code, text := f.get(t, path)
		if code != want.code || code == 200 && text != want.text || !strings.Contains(text, want.text) {
			t.Errorf("%s: %d %q", path, code, text)
		}
	}
}

func TestPodsStatsMetrics(t *testing.T) {
	f := serve(t)
	var list corev1.PodList
	if _, text := f.get(t, "/pods"); json.Unmarshal([]byte(text), &list) != nil || list.Kind != "PodList" || len(list.Items) != 1 {
		t.Errorf("pods: %s", text)
	}
	if _, text := f.get(t, "/stats/summary"); !strings.Contains(text, `"workingSetBytes":4096`) || !strings.Contains(text, `"nodeName":"node"`) {
		t.Errorf("summary: %s", text)
	}
	if _, text := f.get(t, "/metrics/resource"); !strings.Contains(text, `container_cpu_usage_seconds_total{container="c",namespace="n",pod="p"} 2 1000`) ||
		!strings.Contains(text, `pod_memory_working_set_bytes{namespace="n",pod="p"} 4096 1000`) {
		t.Errorf("metrics: %s", text)
	}
	for path, wants := range map[string][]string{
		"/metrics": {"kubelet_running_pods 1", `kubelet_node_name{node="node"} 1`, `kubelet_runtime_operations_total{operation_type="list_podsandbox"} 1`,
			`kubelet_runtime_operations_errors_total{operation_type="list_podsandbox"} 1`, `kubelet_http_requests_total{long_running="false",method="GET",path="stats/summary",server_type="readwrite"} 1`},
		"/metrics/probes": {`prober_probe_total{container="c",namespace="n",pod="p",pod_uid="u",probe_type="Liveness",result="failed"} 1`},
		"/metrics/cadvisor": {`container_cpu_usage_seconds_total{cpu="total",container="c",id="/kubepods/besteffort/podu/",image="",name="",namespace="n",pod="p"} 2 1000`,
			`container_pressure_cpu_waiting_seconds_total{container="c",id="/kubepods/besteffort/podu/",image="",name="",namespace="n",pod="p"} 1.5 1000`,
			`container_pressure_cpu_stalled_seconds_total{container="c",id="/kubepods/besteffort/podu/",image="",name="",namespace="n",pod="p"} 0.5 1000`, `container_memory_working_set_bytes{container="",id="/",`},
		"/configz":          {`"kind":"KubeletConfiguration"`, `"maxPods":7`},
		"/logs/sys.log":     {"from the system"},
		"/logs/":            {"sys.log"},
		"/healthz/syncloop": {"ok"},
		"/runningpods/":     {`"kind":"PodList"`},
	} {
		_, text := f.get(t, path)
		for _, want := range wants {
			if !strings.Contains(text, want) {
				t.Errorf("%s: no %s in\n%s", path, want, text)
			}
		}
	}
	if _, text := f.get(t, "/stats/summary?only_cpu_and_memory=true"); !strings.Contains(text, `"psi":{"full":{"total":500000000,"avg10":0,"avg60":0,"avg300":0},"some":{"total":1500000000,"avg10":2.5,`) {
		t.Errorf("summary without the container's pressure: %s", text)
	}
	if _, text := f.get(t, "/metrics/cadvisor"); strings.Contains(text, `container_pressure_io_waiting_seconds_total{container="c"`) || strings.Contains(text, `container_pressure_memory_waiting_seconds_total{container="c"`) {
		t.Errorf("pressure that the runtime did not measure:\n%s", text)
	}
	f.denied = true
	if code, _ := f.get(t, "/pods"); code != http.StatusForbidden {
		t.Errorf("unauthorized: %d", code)
	}
	if code, _ := f.get(t, "/healthz"); code != http.StatusForbidden {
		t.Errorf("healthz: %d", code)
	}
}

func TestExecIsJoinedWithTheRuntime(t *testing.T) {
	f := serve(t)
	req, err := http.NewRequest(http.MethodPost, f.URL+"/exec/n/p/c?command=ls&output=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "echo")
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("status %s", resp.Status)
	}
	conn := resp.Body.(io.ReadWriteCloser)
	defer conn.Close()
	if _, err := io.WriteString(conn, "hello\n"); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(conn); err != nil || string(b) != "/c1 ls hello\n" {
		t.Fatalf("answer %q, %v", b, err)
	}
	if code, text := f.post(t, "/exec/n/p/w?command=ls&output=1"); code != http.StatusNotFound {
		t.Errorf("a container that does not run: %d %s", code, text)
	}
	if code, _ := f.post(t, "/exec/n/p/c?output=1"); code != http.StatusBadRequest {
		t.Errorf("no command: %d", code)
	}
}

func (f *fixture) post(t *testing.T, path string) (int, string) {
	t.Helper()
	resp, err := http.Post(f.URL+path, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}
