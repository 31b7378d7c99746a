package status

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/agent/view"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)

func pod(policy corev1.RestartPolicy, inits ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n", UID: "u", Generation: 3},
		Spec: corev1.PodSpec{RestartPolicy: policy, Containers: []corev1.Container{{Name: "c", Image: "img"}}}}
	always := corev1.ContainerRestartPolicyAlways
	for _, n := range inits {
		c := corev1.Container{Name: n}
		if n == "side" {
			c.RestartPolicy = &always
		}
		p.Spec.InitContainers = append(p.Spec.InitContainers, c)
	}
	return p
}

func container(name string, state runtimeapi.ContainerState, code int32, restarts string) *view.Container {
	return &view.Container{SandboxID: "s", ContainerStatus: &runtimeapi.ContainerStatus{
		Id: name + restarts, Metadata: &runtimeapi.ContainerMetadata{Name: name}, State: state, ExitCode: code,
		StartedAt: now.UnixNano(), FinishedAt: now.UnixNano(), Image: &runtimeapi.ImageSpec{Image: "img"}, ImageRef: "sha256:1",
		Annotations: map[string]string{podspec.AnnotationRestartCount: restarts}}}
}

const (
	running = runtimeapi.ContainerState_CONTAINER_RUNNING
	exited  = runtimeapi.ContainerState_CONTAINER_EXITED
)

func look(list ...*view.Container) *view.Pod {
	v := (&view.Pod{}).WithSandbox(&runtimeapi.PodSandboxStatus{Id: "s", Network: &runtimeapi.PodSandboxNetworkStatus{Ip: "10.0.0.7", AdditionalIps: []*runtimeapi.PodIP{{Ip: "fd00::7"}}}})
	for _, c := range list {
		v = v.With(c)
	}
	return v
}

func TestPhase(t *testing.T) {
	always, never, onFailure := corev1.RestartPolicyAlways, corev1.RestartPolicyNever, corev1.RestartPolicyOnFailure
	for _, tc := range []struct {
		name    string
		pod     *corev1.Pod
		list    []*view.Container
		stopped bool
		want    corev1.PodPhase
	}{
		{"nothing", pod(always), nil, false, corev1.PodPending},
		{"running", pod(always), []*view.Container{container("c", running, 0, "0")}, false, corev1.PodRunning},
		{"ended, always", pod(always), []*view.Container{container("c", exited, 0, "0")}, false, corev1.PodRunning},
		{"ended, stopped", pod(always), []*view.Container{container("c", exited, 0, "0")}, true, corev1.PodSucceeded},
		{"killed, stopped", pod(always), []*view.Container{container("c", exited, 143, "0")}, true, corev1.PodFailed},
		{"succeeded", pod(never), []*view.Container{container("c", exited, 0, "0")}, false, corev1.PodSucceeded},
		{"failed", pod(never), []*view.Container{container("c", exited, 2, "0")}, false, corev1.PodFailed},
		{"failed, tried again", pod(onFailure), []*view.Container{container("c", exited, 2, "0")}, false, corev1.PodRunning},
		{"succeeded on failure", pod(onFailure), []*view.Container{container("c", exited, 0, "0")}, false, corev1.PodSucceeded},
		{"init runs", pod(always, "i"), []*view.Container{container("i", running, 0, "0")}, false, corev1.PodPending},
		{"init fails", pod(always, "i"), []*view.Container{container("i", exited, 1, "0")}, false, corev1.PodPending},
		{"init fails for good", pod(never, "i"), []*view.Container{container("i", exited, 1, "0")}, false, corev1.PodFailed},
		{"never began, stopped", pod(always), nil, true, corev1.PodFailed},
		{"sidecar outlives", pod(never, "side"), []*view.Container{container("side", running, 0, "0"), container("c", exited, 0, "0")}, false, corev1.PodRunning},
		{"sidecar ended too", pod(never, "side"), []*view.Container{container("side", exited, 143, "0"), container("c", exited, 0, "0")}, true, corev1.PodSucceeded},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := Compute(Input{Pod: tc.pod, View: look(tc.list...), Stopped: tc.stopped, Now: now, Started: map[string]bool{"side0": true}})
			if s.Phase != tc.want {
				t.Errorf("phase %s, want %s", s.Phase, tc.want)
			}
		})
	}
}

func TestRunningPod(t *testing.T) {
	p := pod(corev1.RestartPolicyAlways)
	p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "example.com/ok"}}
	before := metav1.NewTime(now.Add(-time.Hour))
	p.Status.Conditions = []corev1.PodCondition{
		{Type: corev1.PodScheduled, Status: corev1.ConditionTrue, LastTransitionTime: before},
		{Type: "other", Status: corev1.ConditionTrue},
	}
	s := Compute(Input{Pod: p, View: look(container("c", running, 0, "2"), container("c", exited, 7, "1")), NodeIPs: []string{"192.0.2.1"},
		Started: map[string]bool{"c2": true}, Ready: map[string]bool{"c2": true}, Messages: map[string]string{"c1": "last words"}, Now: now})
	c := s.ContainerStatuses[0]
	if c.State.Running == nil || !c.Ready || !*c.Started || c.RestartCount != 2 || c.ContainerID != "knarr://c2" || c.ImageID != "sha256:1" || c.Image != "img" {
		t.Errorf("container %+v", c)
	}
	if l := c.LastTerminationState.Terminated; l == nil || l.ExitCode != 7 || l.Message != "last words" || l.Reason != "Error" {
		t.Errorf("last state %+v", l)
	}
	if s.PodIP != "10.0.0.7" || len(s.PodIPs) != 2 || s.HostIP != "192.0.2.1" || s.ObservedGeneration != 3 || s.QOSClass != corev1.PodQOSBestEffort || !s.StartTime.Time.Equal(now.Truncate(time.Second)) {
		t.Errorf("status %+v", s)
	}
	want := []struct {
		kind    corev1.PodConditionType
		status  corev1.ConditionStatus
		message string
	}{
		{corev1.PodReadyToStartContainers, "True", ""}, {corev1.PodInitialized, "True", ""},
		{corev1.PodReady, "False", `corresponding condition of pod readiness gate "example.com/ok" does not exist.`},
		{corev1.ContainersReady, "True", ""}, {corev1.PodScheduled, "True", ""}, {"other", "True", ""},
	}
	for i, w := range want {
		if g := s.Conditions[i]; g.Type != w.kind || g.Status != w.status || g.Message != w.message {
			t.Errorf("condition %d: %+v, want %+v", i, g, w)
		}
	}
	if !s.Conditions[4].LastTransitionTime.Equal(&before) {
		t.Error("an unchanged condition lost its time")
	}
	// Computing again from the result changes nothing: no write follows.
	p.Status = s
	again := Compute(Input{Pod: p, View: look(container("c", running, 0, "2"), container("c", exited, 7, "1")), NodeIPs: []string{"192.0.2.1"},
		Started: map[string]bool{"c2": true}, Ready: map[string]bool{"c2": true}, Messages: map[string]string{"c1": "last words"}, Now: now.Add(time.Hour)})
	if len(again.Conditions) != len(s.Conditions) || !again.Conditions[2].LastTransitionTime.Equal(&s.Conditions[2].LastTransitionTime) {
		t.Error("a second computation differs")
	}
}

func TestWaitingContainers(t *testing.T) {
	for _, tc := range []struct {
		name    string
		pod     *corev1.Pod
		v       *view.Pod
		waiting map[string]Waiting
		reason  string
		last    bool
	}{
		{"creating", pod("Always"), nil, nil, "ContainerCreating", false},
		{"initializing", pod("Always", "i"), nil, nil, "PodInitializing", false},
		{"pulling", pod("Always"), nil, map[string]Waiting{"c": {Reason: "ErrImagePull"}}, "ErrImagePull", false},
		{"crashing", pod("Always"), look(container("c", exited, 1, "0")), map[string]Waiting{"c": {Reason: "CrashLoopBackOff"}}, "CrashLoopBackOff", true},
		{"hook runs", pod("Always"), look(container("c", running, 0, "0")), map[string]Waiting{"c": {Reason: "ContainerCreating"}}, "ContainerCreating", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := Compute(Input{Pod: tc.pod, View: tc.v, Waiting: tc.waiting, Now: now}).ContainerStatuses[0]
			if c.State.Waiting == nil || c.State.Waiting.Reason != tc.reason || (c.LastTerminationState.Terminated != nil) != tc.last || c.Ready {
				t.Errorf("container %+v", c)
			}
		})
	}
}

func TestTerminalVerdict(t *testing.T) {
	s := Compute(Input{Pod: pod("Always"), View: look(container("c", exited, 0, "0")), Stopped: true, Now: now,
		Terminal: &Terminal{Phase: corev1.PodFailed, Reason: "DeadlineExceeded", Message: "m"}})
	if s.Phase != corev1.PodFailed || s.Reason != "DeadlineExceeded" || s.Message != "m" {
		t.Errorf("status %+v", s)
	}
}

// A resize that waits or goes on is told by a condition, and what the container has
// is told, not what it shall have.
func TestResize(t *testing.T) {
	old := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")}
	pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2")}}}}}}
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", Resources: &corev1.ResourceRequirements{Requests: old}, AllocatedResources: old}}
	has := func(shares int64) *view.Pod {
		return (*view.Pod)(nil).With(&view.Container{ContainerStatus: &runtimeapi.ContainerStatus{Id: "1", Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{},
			State: runtimeapi.ContainerState_CONTAINER_RUNNING, Resources: &runtimeapi.ContainerResources{Linux: &runtimeapi.LinuxContainerResources{CpuShares: shares}}}})
	}
	for _, c := range []struct {
		name                 string
		resize               Resize
		shares               int64
		condition, reason    string
		allocated, resources string
	}{
		{"waits", Resize{Pending: &Waiting{Reason: "Deferred", Message: "no room"}}, 1024, "PodResizePending", "Deferred", "1", "1"},
		{"goes on", Resize{Doing: true}, 1024, "PodResizeInProgress", "", "2", "1"},
		{"fails", Resize{Doing: true, Error: "busy"}, 1024, "PodResizeInProgress", "Error", "2", "1"},
		{"is done", Resize{}, 2048, "", "", "2", "2"},
	} {
		s := Compute(Input{Pod: pod, View: has(c.shares), Resize: c.resize, Now: time.Unix(1, 0)})
		condition, reason := "", ""
		for _, x := range s.Conditions {
			if strings.HasPrefix(string(x.Type), "PodResize") {
				condition, reason = string(x.Type), x.Reason
			}
		}
		st := s.ContainerStatuses[0]
		if condition != c.condition || reason != c.reason || st.AllocatedResources.Cpu().String() != c.allocated || st.Resources.Requests.Cpu().String() != c.resources {
			t.Errorf("%s: %s %s, allocated %s, has %s", c.name, condition, reason, st.AllocatedResources.Cpu(), st.Resources.Requests.Cpu())
		}
	}
}
