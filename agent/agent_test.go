package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	clocktesting "k8s.io/utils/clock/testing"

	"knarr.dev/knarr/agent/critest"
	"knarr.dev/knarr/agent/logs"
	"knarr.dev/knarr/client"
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

func TestRestartsAndCrashLoop(t *testing.T) {
	w := newWorld(t)
	w.run()
	w.pod("p", nil)
	w.wait("p", "running", running)
	w.cri.Exit("c", 3)
	p := w.wait("p", "restarted", func(p *corev1.Pod) bool {
		return p != nil && len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].RestartCount == 1 && p.Status.ContainerStatuses[0].State.Running != nil
	})
	last := p.Status.ContainerStatuses[0].LastTerminationState.Terminated
	if last == nil || last.ExitCode != 3 || last.Reason != "Error" {
		t.Fatalf("last state: %+v", last)
	}
	w.cri.Exit("c", 4)
	p = w.wait("p", "in back-off", waiting("CrashLoopBackOff"))
	want := "back-off 10s restarting failed container=c pod=p_default(uid-p)"
	if got := p.Status.ContainerStatuses[0].State.Waiting.Message; got != want {
		t.Fatalf("message %q, want %q", got, want)
	}
	if p.Status.Phase != corev1.PodRunning {
		t.Fatalf("phase %s, want Running", p.Status.Phase)
	}
	w.event("Warning BackOff Back-off restarting failed container c in pod p_default(uid-p)")
}

func TestNeverRestartedPodEnds(t *testing.T) {
	for _, tc := range []struct {
		code  int32
		phase corev1.PodPhase
	}{{0, corev1.PodSucceeded}, {1, corev1.PodFailed}} {
		w := newWorld(t)
		w.run()
		w.pod("p", func(p *corev1.Pod) { p.Spec.RestartPolicy = corev1.RestartPolicyNever })
		w.wait("p", "running", running)
		w.cri.Exit("c", tc.code)
		p := w.wait("p", string(tc.phase), func(p *corev1.Pod) bool { return p != nil && p.Status.Phase == tc.phase })
		if condition(p, corev1.PodReady) != corev1.ConditionFalse {
			t.Error("an ended pod is not ready")
		}
		w.runtime("a stopped sandbox", func(r *critest.Runtime) bool { return slices.Contains(r.Calls(), "StopPodSandbox s1") })
		w.delete("p", nil)
		w.gone("p")
		w.runtime("nothing", (*critest.Runtime).Empty)
	}
}

func TestInitContainersRunInOrder(t *testing.T) {
	w := newWorld(t)
	w.run()
	always := corev1.ContainerRestartPolicyAlways
	w.pod("p", func(p *corev1.Pod) {
		p.Spec.InitContainers = []corev1.Container{{Name: "i1", Image: "b"}, {Name: "side", Image: "b", RestartPolicy: &always}, {Name: "i2", Image: "b"}}
	})
	w.runtime("i1", func(r *critest.Runtime) bool { return len(r.Containers("i1")) == 1 })
	p := w.wait("p", "initializing", waiting("PodInitializing"))
	if condition(p, corev1.PodInitialized) != corev1.ConditionFalse || p.Status.Phase != corev1.PodPending {
		t.Fatalf("status: %+v", p.Status)
	}
	w.wait("p", "running i1", func(p *corev1.Pod) bool { return p != nil && p.Status.InitContainerStatuses[0].State.Running != nil })
	w.cri.Exit("i1", 0)
	w.runtime("i2 beside the sidecar", func(r *critest.Runtime) bool {
		s := r.Containers("side")
		return len(r.Containers("i2")) == 1 && len(s) == 1
	})
	w.wait("p", "running i2", func(p *corev1.Pod) bool { return p != nil && p.Status.InitContainerStatuses[2].State.Running != nil })
	if len(w.cri.Containers("c")) != 0 {
		t.Fatal("the main container started before the init containers ended")
	}
	w.cri.Exit("i2", 0)
	w.wait("p", "ready", ready)
	var order []string
	w.cri.OnStop = func(name string, _ int64) { order = append(order, name) }
	w.delete("p", nil)
	w.gone("p")
	if !slices.Equal(order, []string{"c", "side"}) {
		t.Fatalf("stopped in order %v, want c before its sidecar", order)
	}
}

func TestAgentRestartKeepsContainers(t *testing.T) {
	w := newWorld(t)
	w.run()
	w.pod("p", nil)
	before := w.wait("p", "ready", ready)
	w.pod("orphan", nil)
	w.wait("orphan", "ready", ready)
	w.stop()
	zero := int64(0)
	w.delete("orphan", &zero)
	w.run()
	w.runtime("one pod left", func(r *critest.Runtime) bool { return len(r.Containers("")) == 1 })
	w.cri.Exit("c", 1)
	after := w.wait("p", "restarted", func(p *corev1.Pod) bool { return p != nil && p.Status.ContainerStatuses[0].RestartCount == 1 })
	if got := after.Status.ContainerStatuses[0].LastTerminationState.Terminated.ContainerID; got != before.Status.ContainerStatuses[0].ContainerID {
		t.Fatalf("the restarted agent replaced container %s", before.Status.ContainerStatuses[0].ContainerID)
	}
}

// What no disk may see lies in memory, and what shows the API's objects is not the
// container's to change.
func TestSecretsLieInMemory(t *testing.T) {
	w := newWorld(t)
	w.create(client.Secrets, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "s"}, Data: map[string][]byte{"k": []byte("hidden")}})
	w.create(client.ConfigMaps, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "cm"}, Data: map[string]string{"k": "plain"}})
	w.run()
	secret := corev1.LocalObjectReference{Name: "s"}
	w.pod("p", func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{
			{Name: "secret", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s"}}},
			{Name: "projected", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{Secret: &corev1.SecretProjection{LocalObjectReference: secret}}}}}},
			{Name: "downward", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{{Path: "k", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}}}}},
			{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}}}},
			{Name: "empty", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		}
		for _, v := range p.Spec.Volumes {
			p.Spec.Containers[0].VolumeMounts = append(p.Spec.Containers[0].VolumeMounts, corev1.VolumeMount{Name: v.Name, MountPath: "/" + v.Name})
		}
	})
	w.wait("p", "ready", ready)
	mounts := map[string]*runtimeapi.Mount{}
	for _, m := range w.cri.Containers("c")[0].Config.Mounts {
		mounts[m.ContainerPath] = m
	}
	for path, want := range map[string]struct{ inMemory, readOnly bool }{
		"/secret": {true, true}, "/projected": {true, true}, "/downward": {true, true}, "/config": {false, true}, "/empty": {false, false},
	} {
		m := mounts[path]
		var own, disk unix.Statfs_t
		if err := errors.Join(unix.Statfs(m.HostPath, &own), unix.Statfs(w.cfg.Root, &disk)); err != nil {
			t.Fatal(err)
		}
		if m.Readonly != want.readOnly || (own.Type == unix.TMPFS_MAGIC) != (want.inMemory || disk.Type == unix.TMPFS_MAGIC) {
			t.Errorf("%s: read-only %v, file system %x", path, m.Readonly, own.Type)
		}
		if _, err := os.Stat(filepath.Join(m.HostPath, "k")); err != nil && path != "/empty" {
			t.Error(err)
		}
	}
	w.delete("p", nil)
	w.gone("p")
	w.runtime("nothing", (*critest.Runtime).Empty)
	w.stop()
	if left, err := os.ReadDir(filepath.Join(w.cfg.Root, "memory")); err != nil || len(left) != 0 {
		t.Errorf("left in memory: %v, %v", left, err)
	}
}

// A pod that went while the node was down, and of which the runtime has nothing, leaves
// no files.
func TestFilesOfUnknownPodsAreRemoved(t *testing.T) {
	w := newWorld(t)
	w.run()
	w.pod("p", nil)
	w.wait("p", "ready", ready)
	w.stop()
	gone := []string{filepath.Join(w.cfg.Root, "pods/uid-gone/volumes/kubernetes.io~empty-dir/e"), filepath.Join(w.cfg.Root, "memory/uid-other/kubernetes.io~secret/s"),
		filepath.Join(w.cfg.LogRoot, "default_gone_uid-gone/c")}
	for _, dir := range gone {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	foreign := filepath.Join(w.cfg.LogRoot, "default_foreign_uid-foreign") // another agent's, perhaps
	if err := os.Mkdir(foreign, 0o755); err != nil {
		t.Fatal(err)
	}
	var watcher logs.Watcher
	w.run()
	w.cri.Exit("c", 1) // the agent is at work
	w.wait("p", "restarted", func(p *corev1.Pod) bool { return p != nil && p.Status.ContainerStatuses[0].RestartCount == 1 })
	for _, dir := range append(gone[2:], filepath.Join(w.cfg.Root, "pods/uid-gone"), filepath.Join(w.cfg.Root, "memory/uid-other")) {
		changed, cancel, err := watcher.Watch(filepath.Dir(dir))
		if errors.Is(err, fs.ErrNotExist) {
			continue // with its parent
		}
		if err != nil {
			t.Fatal(err)
		}
		for limit := time.After(10 * time.Second); ; {
			if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
				break
			}
			select {
			case <-changed:
			case <-limit:
				t.Fatalf("%s is still there", dir)
			}
		}
		cancel()
	}
	for _, dir := range []string{foreign, filepath.Join(w.cfg.Root, "pods/uid-p"), filepath.Join(w.cfg.LogRoot, "default_p_uid-p")} {
		if _, err := os.Stat(dir); err != nil {
			t.Error(err)
		}
	}
}

func TestPullFailures(t *testing.T) {
	w := newWorld(t)
	w.cri.Fail = func(method, detail string) error {
		if method == "PullImage" {
			return grpcstatus.Error(codes.NotFound, "no such image")
		}
		return nil
	}
	w.run()
	w.pod("p", nil)
	p := w.wait("p", "failing to pull", waiting("ErrImagePull"))
	if m := p.Status.ContainerStatuses[0].State.Waiting.Message; m != "no such image" {
		t.Fatalf("message %q", m)
	}
	p = w.wait("p", "backing off", waiting("ImagePullBackOff"))
	if m := p.Status.ContainerStatuses[0].State.Waiting.Message; m != `Back-off pulling image "busybox:1": ErrImagePull: no such image` {
		t.Fatalf("message %q", m)
	}
	for _, e := range []string{`Warning Failed Failed to pull image "busybox:1": no such image`, "Warning Failed Error: ErrImagePull",
		`Normal BackOff Back-off pulling image "busybox:1"`, "Warning Failed Error: ImagePullBackOff"} {
		w.event(e)
	}
	w.pod("never", func(p *corev1.Pod) { p.Spec.Containers[0].ImagePullPolicy = corev1.PullNever })
	w.wait("never", "refused", waiting("ErrImageNeverPull"))
	w.pod("bad", func(p *corev1.Pod) { p.Spec.Containers[0].Image = "Bad Name" })
	w.wait("bad", "refused", waiting("InvalidImageName"))
	w.delete("p", nil)
	w.gone("p")
}

func TestStartFailures(t *testing.T) {
	w := newWorld(t)
	w.cri.Fail = func(method, detail string) error {
		if method == "CreateContainer" && detail == "nocreate" || method == "StartContainer" && detail == "nostart" {
			return grpcstatus.Error(codes.Unknown, "boom")
		}
		return nil
	}
	w.run()
	name := func(n string) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Spec.Containers[0].Name = n }
	}
	w.pod("a", name("nocreate"))
	w.wait("a", "failing", waiting("CreateContainerError"))
	w.pod("b", name("nostart"))
	p := w.wait("b", "failing", waiting("RunContainerError"))
	if m := p.Status.ContainerStatuses[0].State.Waiting.Message; m != "boom" {
		t.Fatalf("message %q", m)
	}
	w.pod("c", func(p *corev1.Pod) {
		p.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}}}}
	})
	p = w.wait("c", "failing", waiting("CreateContainerConfigError"))
	if m := p.Status.ContainerStatuses[0].State.Waiting.Message; m != `configmap "cm" not found` {
		t.Fatalf("message %q", m)
	}
	w.create(client.ConfigMaps, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "cm"}, Data: map[string]string{"A": "1"}})
	w.wait("c", "ready once the ConfigMap is there", ready)
	env := w.cri.Containers("c")[0].Config.Envs
	if len(env) != 1 || env[0].Key != "A" || string(env[0].Value) != "1" {
		t.Fatalf("environment %v", env)
	}
}

func TestVolumesAppearAndFollow(t *testing.T) {
	w := newWorld(t)
	w.run()
	w.pod("p", func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{
			{Name: "cm", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}}}},
			{Name: "e", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "cm", MountPath: "/cm"}, {Name: "e", MountPath: "/e", SubPath: "a/b"}}
	})
	w.event(`Warning FailedMount MountVolume.SetUp failed for volume "cm" : configmap "cm" not found`)
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "cm"}, Data: map[string]string{"k": "one"}}
	w.create(client.ConfigMaps, cm)
	w.wait("p", "ready", ready)
	mounts := map[string]string{}
	for _, m := range w.cri.Containers("c")[0].Config.Mounts {
		mounts[m.ContainerPath] = m.HostPath
	}
	if b, err := os.ReadFile(filepath.Join(mounts["/cm"], "k")); err != nil || string(b) != "one" {
		t.Fatalf("content %q, %v", b, err)
	}
	if info, err := os.Stat(mounts["/e"]); err != nil || info.Mode().Perm() != 0o777 || !strings.HasSuffix(mounts["/e"], "/volume-subpaths/e/c/1") {
		t.Fatalf("subPath %s: %v %v", mounts["/e"], info, err)
	}
	if b, err := os.ReadFile(mounts["/etc/hosts"]); err != nil || !strings.Contains(string(b), "10.9.0.1\tp\n") {
		t.Fatalf("hosts file %q, %v", b, err)
	}
	changed := make(chan struct{})
	var watcher logs.Watcher
	signal, cancel, err := watcher.Watch(mounts["/cm"])
	if err != nil {
		t.Fatal(err)
	}
	defer cancel()
	go func() {
		defer close(changed)
		for range 100 {
			if b, _ := os.ReadFile(filepath.Join(mounts["/cm"], "k")); string(b) == "two" {
				return
			}
			<-signal
		}
	}()
	next := cm.DeepCopy()
	next.Data = map[string]string{"k": "two"}
	if _, err := w.api.Update(context.Background(), client.Key{Resource: client.ConfigMaps, Namespace: "default", Name: "cm"}, next); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	case <-time.After(10 * time.Second):
		t.Fatal("the volume did not follow its ConfigMap")
	}
	w.delete("p", nil)
	w.gone("p")
	w.runtime("nothing", (*critest.Runtime).Empty)
}

func TestProbesDriveReadinessAndRestarts(t *testing.T) {
	w := newWorld(t)
	var healthy, alive atomic.Bool
	alive.Store(true)
	w.cri.OnExec = func(_ string, cmd []string) (int32, string) {
		if cmd[0] == "ready" && healthy.Load() || cmd[0] == "live" && alive.Load() {
			return 0, ""
		}
		return 1, "not " + cmd[0]
	}
	w.run()
	probe := func(cmd string, n int32) *corev1.Probe {
		return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{cmd}}}, PeriodSeconds: 1, FailureThreshold: n}
	}
	w.pod("p", func(p *corev1.Pod) {
		p.Spec.Containers[0].ReadinessProbe, p.Spec.Containers[0].LivenessProbe = probe("ready", 1), probe("live", 1)
	})
	p := w.wait("p", "running", running)
	if ready(p) {
		t.Fatal("ready before the probe succeeded")
	}
	w.event("Warning Unhealthy Readiness probe failed: not ready")
	healthy.Store(true)
	w.wait("p", "ready", ready)
	alive.Store(false)
	w.event("Normal Killing Container c failed liveness probe, will be restarted")
	alive.Store(true)
	w.wait("p", "restarted", func(p *corev1.Pod) bool {
		return p != nil && p.Status.ContainerStatuses[0].RestartCount == 1 && ready(p)
	})
}

type drainer struct {
	order *[]string
	mu    *sync.Mutex
}

func (d drainer) Drain(_ context.Context, pod *corev1.Pod) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	*d.order = append(*d.order, "drain "+pod.Name)
	return nil
}

func TestDeletionDrainsThenHooksThenStops(t *testing.T) {
	var mu sync.Mutex
	var order []string
	w := newWorld(t, func(c *Config) { c.Drainer = drainer{&order, &mu} })
	note := func(s string) {
		mu.Lock()
		defer mu.Unlock()
		order = append(order, s)
	}
	w.cri.OnExec = func(c string, cmd []string) (int32, string) { note("exec " + cmd[0]); return 0, "" }
	w.cri.OnStop = func(name string, timeout int64) { note(fmt.Sprintf("stop %s %d", name, timeout)) }
	w.run()
	w.pod("p", func(p *corev1.Pod) {
		exec := func(c string) *corev1.LifecycleHandler {
			return &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{c}}}
		}
		p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PostStart: exec("post"), PreStop: exec("pre")}
	})
	w.wait("p", "ready", ready)
	grace := int64(7)
	w.delete("p", &grace)
	w.gone("p")
	mu.Lock()
	defer mu.Unlock()
	if want := []string{"exec post", "drain p", "exec pre", "stop c 7"}; !slices.Equal(order, want) {
		t.Fatalf("order %v, want %v", order, want)
	}
}

func TestForcedDeletionCleansUp(t *testing.T) {
	w := newWorld(t)
	w.run()
	w.pod("p", nil)
	w.wait("p", "ready", ready)
	zero := int64(0)
	w.delete("p", &zero)
	w.runtime("nothing", (*critest.Runtime).Empty)
}

func TestDeadSandboxIsReplaced(t *testing.T) {
	w := newWorld(t)
	w.run()
	w.pod("p", nil)
	w.wait("p", "ready", ready)
	w.cri.KillSandboxes()
	w.event("Normal SandboxChanged Pod sandbox changed, it will be killed and re-created.")
	w.runtime("a second sandbox with a container", func(r *critest.Runtime) bool {
		l := r.Containers("c")
		return len(l) == 2 && l[1].Sandbox != l[0].Sandbox
	})
	w.wait("p", "ready again", func(p *corev1.Pod) bool {
		return p != nil && ready(p) && p.Status.ContainerStatuses[0].RestartCount == 1
	})
}

func TestBrokenEventStreamIsRelisted(t *testing.T) {
	w := newWorld(t)
	w.run()
	w.pod("p", nil)
	w.wait("p", "ready", ready)
	w.cri.BreakStreams()
	w.cri.Exit("c", 9)
	w.wait("p", "restarted", func(p *corev1.Pod) bool { return p != nil && p.Status.ContainerStatuses[0].RestartCount == 1 })
}

func TestDeadlineAndAdmission(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Capacity = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")} })
	w.run()
	w.node()
	one := int64(1)
	w.pod("late", func(p *corev1.Pod) { p.Spec.ActiveDeadlineSeconds = &one })
	p := w.wait("late", "failed", func(p *corev1.Pod) bool { return p != nil && p.Status.Phase == corev1.PodFailed })
	if p.Status.Reason != "DeadlineExceeded" || p.Status.Message != "Pod was active on the node longer than the specified deadline" {
		t.Fatalf("status %+v", p.Status)
	}
	w.pod("big", func(p *corev1.Pod) {
		p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2")}
	})
	p = w.wait("big", "failed", func(p *corev1.Pod) bool { return p != nil && p.Status.Phase == corev1.PodFailed })
	if want := "Pod was rejected: Node didn't have enough resource: cpu, requested: 2000, used: 0, capacity: 1000"; p.Status.Reason != "OutOfcpu" || p.Status.Message != want {
		t.Fatalf("status %+v", p.Status)
	}
	w.pod("unsafe", func(p *corev1.Pod) {
		p.Spec.SecurityContext = &corev1.PodSecurityContext{Sysctls: []corev1.Sysctl{{Name: "kernel.msgmax", Value: "1"}}}
	})
	p = w.wait("unsafe", "failed", func(p *corev1.Pod) bool { return p != nil && p.Status.Phase == corev1.PodFailed })
	if want := `Pod was rejected: forbidden sysctl: "kernel.msgmax" not allowlisted`; p.Status.Reason != "SysctlForbidden" || p.Status.Message != want {
		t.Fatalf("status %+v", p.Status)
	}
	w.pod("elsewhere", func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "ssd"} })
	w.wait("elsewhere", "failed", func(p *corev1.Pod) bool { return p != nil && p.Status.Reason == "NodeAffinity" })
}

func TestNodeRegistersAndRenews(t *testing.T) {
	w := newWorld(t)
	w.run()
	n := w.node()
	if n.Labels[corev1.LabelHostname] != "n1" || n.Status.NodeInfo.KubeletVersion != "v1.36.3+knarr" || n.Status.NodeInfo.ContainerRuntimeVersion != "critest://1" {
		t.Fatalf("node %+v", n)
	}
	for _, c := range n.Status.Conditions {
		want := corev1.ConditionFalse
		if c.Type == corev1.NodeReady {
			want = corev1.ConditionTrue
		}
		if c.Type != corev1.NodeDiskPressure && c.Status != want {
			t.Errorf("condition %s is %s (%s)", c.Type, c.Status, c.Message)
		}
	}
	if pods := n.Status.Capacity.Pods().Value(); pods != 110 {
		t.Errorf("%d pods, want 110", pods)
	}
	lease := make(chan struct{})
	var once sync.Once
	defer w.api.Cache(client.Leases, "").Subscribe(func(client.Event) { once.Do(func() { close(lease) }) })()
	select {
	case <-lease:
	case <-time.After(10 * time.Second):
		t.Fatal("no lease")
	}
}

// A node that the controller holds for lost, or that somebody deleted, says at once
// that it is there, not at its next look at itself.
func TestNodeAnswersWhoHoldsItForLost(t *testing.T) {
	w := newWorld(t)
	w.run()
	k := client.Key{Resource: client.Nodes, Name: "n1"}
	lost := w.node().DeepCopy()
	for i := range lost.Status.Conditions {
		if c := &lost.Status.Conditions[i]; c.Type == corev1.NodeReady {
			c.Status, c.Reason = corev1.ConditionUnknown, "NodeStatusUnknown"
		}
	}
	lost.ResourceVersion = ""
	states := make(chan corev1.ConditionStatus, 64)
	defer w.api.Cache(client.Nodes, "").Subscribe(func(e client.Event) {
		for _, c := range e.Object.(*corev1.Node).Status.Conditions {
			if c.Type == corev1.NodeReady && e.Type != client.Deleted {
				states <- c.Status
			}
		}
	})()
	await := func(want corev1.ConditionStatus) {
		t.Helper()
		for end := time.After(5 * time.Second); ; {
			select {
			case got := <-states:
				if got == want {
					return
				}
			case <-end:
				t.Fatalf("the node is not %s", want)
			}
		}
	}
	await(corev1.ConditionTrue)
	if _, err := w.api.Update(t.Context(), k.Sub("status"), lost); err != nil {
		t.Fatal(err)
	}
	await(corev1.ConditionUnknown)
	await(corev1.ConditionTrue)
	if err := w.api.Delete(t.Context(), k, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	await(corev1.ConditionTrue)
}

// BenchmarkPodToRunning measures the agent's own share of a pod's start: from the
// pod's creation to Running in the API, over a runtime that takes no time.
func BenchmarkPodToRunning(b *testing.B) {
	w := newWorld(b)
	w.run()
	seen := make(chan string, 16)
	defer w.api.Cache(client.Pods, "").Subscribe(func(e client.Event) {
		if p := e.Object.(*corev1.Pod); e.Type == client.Modified && p.DeletionTimestamp == nil && ready(p) {
			seen <- p.Name
		}
	})()
	i := 0
	for b.Loop() {
		i++
		name := fmt.Sprintf("p%d", i)
		w.pod(name, nil)
		for <-seen != name {
		}
		b.StopTimer()
		w.delete(name, nil)
		w.gone(name)
		b.StartTimer()
	}
}

func TestCrashBackoffDoublesAndEnds(t *testing.T) {
	clk := clocktesting.NewFakeClock(time.Now())
	w := newWorld(t, withClock(clk))
	w.run()
	w.pod("p", nil)
	w.wait("p", "running", running)
	count := func(n int32) func(*corev1.Pod) bool {
		return func(p *corev1.Pod) bool {
			return p != nil && p.Status.ContainerStatuses[0].RestartCount == n && p.Status.ContainerStatuses[0].State.Running != nil
		}
	}
	w.runtime("somebody who follows it", (*critest.Runtime).Followed)
	w.cri.ExitAt("c", 1, clk.Now())
	w.wait("p", "restarted at once", count(1))
	for i, delay := range []time.Duration{10, 20, 40, 80, 160, 300, 300} {
		delay *= time.Second
		w.cri.ExitAt("c", 1, clk.Now())
		p := w.wait("p", fmt.Sprintf("held for %s", delay), func(p *corev1.Pod) bool {
			return waiting("CrashLoopBackOff")(p) && strings.HasPrefix(p.Status.ContainerStatuses[0].State.Waiting.Message, "back-off "+delay.String()+" ")
		})
		if got := p.Status.ContainerStatuses[0].LastTerminationState.Terminated; got == nil || got.ExitCode != 1 {
			t.Fatalf("last state %+v", got)
		}
		clk.Step(delay)
		w.wait("p", "restarted after the pause", count(int32(i+2)))
	}
	// A container that ran for ten minutes begins anew.
	clk.Step(11 * time.Minute)
	w.cri.ExitAt("c", 1, clk.Now())
	w.wait("p", "restarted at once again", count(9))
}

// BenchmarkPodDelete measures from the deletion of a pod whose containers end at
// once until it is gone from the API.
func BenchmarkPodDelete(b *testing.B) {
	w := newWorld(b)
	w.run()
	i := 0
	for b.Loop() {
		b.StopTimer()
		i++
		name := fmt.Sprintf("p%d", i)
		w.pod(name, nil)
		w.wait(name, "ready", ready)
		b.StartTimer()
		w.delete(name, nil)
		w.gone(name)
	}
}

func TestImageVolumeIsMountedByTheRuntime(t *testing.T) {
	w := newWorld(t)
	w.run()
	w.pod("p", func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: "data:1"}}}}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/data", SubPath: "sub"}}
	})
	w.wait("p", "ready", ready)
	m := w.cri.Containers("c")[0].Config.Mounts[0]
	if m.ContainerPath != "/data" || m.Image.GetImage() != "sha256:data:1" || m.ImageSubPath != "sub" || m.HostPath != "" || !m.Readonly {
		t.Fatalf("mount %v", m)
	}
}
