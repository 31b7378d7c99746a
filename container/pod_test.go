package container

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// wire is a network that notes what it is asked to do.
type wire struct {
	mu       sync.Mutex
	attached map[string]string
}

func (w *wire) Attach(_ context.Context, id, netns string) ([]netip.Addr, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.attached[id] = netns
	return []netip.Addr{netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("fd00::3")}, nil
}

func (w *wire) Detach(_ context.Context, id string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.attached, id)
	return nil
}

func TestPodLife(t *testing.T) {
	f := newFixture(t)
	w := &wire{attached: map[string]string{}}
	f.Server.cfg.Network = w
	pod := f.sandbox(nil)
	resp, err := f.PodSandboxStatus(f.ctx(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod[:12]})
	if err != nil {
		t.Fatal(err)
	}
	st := resp.Status
	if st.State != runtimeapi.PodSandboxState_SANDBOX_READY || st.Network.Ip != "10.1.2.3" || len(st.Network.AdditionalIps) != 1 || w.attached[pod] == "" {
		t.Errorf("status %v, attached %v", st, w.attached)
	}
	f.n-- // the same name once more
	if _, err := f.RunPodSandbox(f.ctx(), &runtimeapi.RunPodSandboxRequest{Config: f.podConfig(nil)}); err == nil {
		t.Error("a second sandbox of the same name was made")
	}
	id := f.run(pod, "sleep 1000", nil)
	for range 2 { // repeating is harmless
		if _, err := f.StopPodSandbox(f.ctx(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
			t.Fatal(err)
		}
	}
	if st := f.status(id); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 137 || len(w.attached) != 0 {
		t.Errorf("after the stop: %v, attached %v", st, w.attached)
	}
	for range 2 {
		if _, err := f.RemovePodSandbox(f.ctx(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
			t.Fatal(err)
		}
	}
	list, err := f.ListContainers(f.ctx(), &runtimeapi.ListContainersRequest{})
	if err != nil || len(list.Containers) != 0 {
		t.Errorf("left: %v (%v)", list, err)
	}
}

func TestSysctls(t *testing.T) {
	f := newFixture(t)
	pod := f.sandbox(func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "81", "kernel.shm_rmid_forced": "1"}
	})
	if got := f.output(pod, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced", nil); got != "81\n1\n" {
		t.Errorf("inside they read %q", got)
	}
}

// What a pod takes beside its containers is in its group's limits.
func TestOverhead(t *testing.T) {
	f := newFixture(t)
	config := f.podConfig(func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}
		c.Linux.Overhead = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 16 << 20}
	})
	r, err := f.RunPodSandbox(f.ctx(), &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	limit := func() uint64 {
		p, err := f.pod(r.PodSandboxId)
		if err != nil {
			t.Fatal(err)
		}
		return f.layout.Group(p.Cgroup).Stats().MemoryLimit
	}
	if got := limit(); got != 80<<20 {
		t.Errorf("the pod may have %d bytes", got)
	}
	if _, err := f.UpdatePodSandboxResources(f.ctx(), &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: r.PodSandboxId,
		Resources: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 32 << 20}, Overhead: config.Linux.Overhead}); err != nil {
		t.Fatal(err)
	}
	if got := limit(); got != 48<<20 {
		t.Errorf("the changed pod may have %d bytes", got)
	}
}

// Programs on the host's network know its name from where others know the pod's.
func TestHostNameInTheEnvironment(t *testing.T) {
	f := newFixture(t)
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	shared := f.sandbox(func(c *runtimeapi.PodSandboxConfig) {
		c.Hostname = ""
		c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	})
	for pod, want := range map[string]string{shared: host, f.sandbox(nil): "pod-host"} {
		if got := f.output(pod, "env | grep ^HOSTNAME=", nil); got != "HOSTNAME="+want+"\n" {
			t.Errorf("%q, want %s", got, want)
		}
	}
}

// The image of a volume is in use as that of a container is.
func TestMountedImageStays(t *testing.T) {
	f := newFixture(t)
	ref := f.pull(push(t, "test/data:1", v1.Config{Labels: map[string]string{"a": "volume"}}, busyboxLayer(t)))
	pod := f.sandbox(nil)
	f.run(pod, "sleep 1000", func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/image", Image: &runtimeapi.ImageSpec{Image: ref}, Readonly: true}}
	})
	remove := func() error {
		_, err := f.RemoveImage(f.ctx(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
		return err
	}
	if err := remove(); err == nil || !strings.Contains(err.Error(), "is used by a container") {
		t.Errorf("removed with a container that shows it: %v", err)
	}
	removed(t, f, pod)
	if err := remove(); err != nil {
		t.Error(err)
	}
}

func TestStatsUpdateReopen(t *testing.T) {
	f := newFixture(t)
	pod := f.sandbox(nil)
	id := f.run(pod, "dd if=/dev/zero of=/file bs=1k count=64 2>/dev/null; read x; echo after; read x", func(c *runtimeapi.ContainerConfig) {
		c.Stdin = true
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}
	})
	if _, err := f.UpdateContainerResources(f.ctx(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 128 << 20, CpuShares: 256, CpusetCpus: "0"}}); err != nil {
		t.Fatal(err)
	}
	c, err := f.container(id)
	if err != nil {
		t.Fatal(err)
	}
	if got := c.group.Stats().MemoryLimit; got != 128<<20 {
		t.Errorf("the limit is %d", got)
	}
	if r := f.status(id).Resources.Linux; r.MemoryLimitInBytes != 128<<20 || r.CpuShares != 256 {
		t.Errorf("the status shows %v", r)
	}
	if r := f.exec(id, "grep", "Cpus_allowed_list", "/proc/1/status"); !strings.HasSuffix(strings.TrimSpace(string(r.Stdout)), "\t0") {
		t.Errorf("the CPUs are %q", r.Stdout)
	}
	resp, err := f.ContainerStats(f.ctx(), &runtimeapi.ContainerStatsRequest{ContainerId: id})
	if err != nil || resp.Stats.Cpu.UsageCoreNanoSeconds.Value == 0 || resp.Stats.Memory.WorkingSetBytes.Value == 0 {
		t.Errorf("stats: %v (%v)", resp, err)
	}
	pods, err := f.ListPodSandboxStats(f.ctx(), &runtimeapi.ListPodSandboxStatsRequest{})
	if err != nil || len(pods.Stats) != 1 || len(pods.Stats[0].Linux.Containers) != 1 || pods.Stats[0].Linux.Process.ProcessCount.Value == 0 {
		t.Errorf("pod stats: %v (%v)", pods, err)
	}
	path := f.status(id).LogPath
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReopenContainerLog(f.ctx(), &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := c.output.in.WriteString("go\n"); err != nil {
			t.Fatal(err)
		}
	}
	f.wait(id)
	if out, _ := f.logText(id); out != "after\n" {
		t.Errorf("after the rotation the log holds %q", out)
	}
}

func TestEventsOverSocket(t *testing.T) {
	f := newFixture(t)
	l, err := net.Listen("unix", filepath.Join(f.cfg.Run, "cri.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(f.ctx())
	served := make(chan error, 1)
	go func() { served <- f.Serve(ctx, l) }()
	conn, err := grpc.NewClient("unix://"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := runtimeapi.NewRuntimeServiceClient(conn)
	events, err := client.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := events.Header(); err != nil { // sent once the subscription stands
		t.Fatal(err)
	}
	id := f.run(f.sandbox(nil), "exit 3", nil)
	var seen []runtimeapi.ContainerEventType
	for len(seen) < 3 {
		ev, err := events.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if ev.ContainerId == id {
			seen = append(seen, ev.ContainerEventType)
		}
	}
	if seen[0] != runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT || seen[1] != runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT || seen[2] != runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT {
		t.Errorf("events %v", seen)
	}
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestPortForward(t *testing.T) {
	f := newFixture(t)
	pod := f.sandbox(nil)
	id := f.run(pod, "", func(c *runtimeapi.ContainerConfig) {
		c.Command = []string{"sh", "-c", "busybox mkdir -p /www; echo served > /www/index.html; exec httpd -f -p 127.0.0.1:8080 -h /www"}
	})
	// It listens before it is asked: connect from inside until it answers.
	f.exec(id, "sh", "-c", "until nc 127.0.0.1 8080 </dev/null; do :; done")
	resp, err := f.PortForward(f.ctx(), &runtimeapi.PortForwardRequest{PodSandboxId: pod})
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(resp.Url)
	if err != nil {
		t.Fatal(err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	fw, err := portforward.New(spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u), []string{"0:8080"}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- fw.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	ports, err := fw.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.Get("http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(int(ports[0].Local))) + "/")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(answer.Body)
	answer.Body.Close()
	if string(body) != "served\n" || err != nil {
		t.Errorf("through the forward came %q (%v)", body, err)
	}
	close(stop)
	<-done
}

// TestNothingAccumulates runs pods again and again and counts what stays.
func TestNothingAccumulates(t *testing.T) {
	f := newFixture(t)
	round := func() {
		pod := f.sandbox(nil)
		id := f.run(pod, "echo x; exec sleep 1000", nil)
		f.exec(id, "true")
		if _, err := f.RemovePodSandbox(f.ctx(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
			t.Fatal(err)
		}
	}
	count := func() (fds, goroutines int) {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries), runtime.NumGoroutine()
	}
	for range 3 {
		round()
	}
	fds, routines := count()
	for range 20 {
		round()
	}
	f.work.Wait() // nothing runs, so all that was started has ended
	fds2, routines2 := count()
	if fds2 > fds || routines2 > routines+2 {
		t.Errorf("descriptors %d then %d, goroutines %d then %d", fds, fds2, routines, routines2)
	}
	keys, err := f.holder.List()
	if err != nil || len(keys) != 0 {
		t.Errorf("the holder keeps %v (%v)", keys, err)
	}
}
