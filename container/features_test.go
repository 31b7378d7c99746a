package container

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func security(change func(*runtimeapi.LinuxContainerSecurityContext)) func(*runtimeapi.ContainerConfig) {
	return func(c *runtimeapi.ContainerConfig) { change(c.Linux.SecurityContext) }
}

func TestSecurity(t *testing.T) {
	f := newFixture(t)
	pod := f.sandbox(nil)
	host := t.TempDir()
	for _, c := range []struct {
		name, script, want string
		change             func(*runtimeapi.ContainerConfig)
	}{
		{"user by number", "id -u; id -g; id -G", "1000\n1001\n1001 2000 3000\n", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
			s.SupplementalGroups = []int64{3000}
		})},
		{"strict groups", "id -G", "1001 3000\n", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
			s.SupplementalGroups = []int64{3000}
			s.SupplementalGroupsPolicy = runtimeapi.SupplementalGroupsPolicy_Strict
		})},
		{"user by name", "id -un; echo $HOME", "web\n/home/web\n", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUsername = "web" })},
		{"stdout of a user", "echo yes > /dev/stdout", "yes\n", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
		})},
		{"no capabilities", "grep CapEff /proc/self/status", "CapEff:\t0000000000000000\n", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}}
		})},
		{"one capability", "grep CapEff /proc/self/status", "CapEff:\t0000000000000400\n", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_BIND_SERVICE"}}
		})},
		{"no new privileges", "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1\n", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.NoNewPrivs = true })},
		{"unconfined", "grep Seccomp: /proc/self/status", "Seccomp:\t0\n", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
		})},
		{"read-only root", "touch /x 2>/dev/null || echo refused; touch /dev/shm/y && echo fine", "refused\nfine\n", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.ReadonlyRootfs = true })},
		{"privileged", "mount -t tmpfs x /tmp && echo mounted; test -b /dev/vda && echo disk", "mounted\ndisk\n",
			security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true })},
		{"volume", "echo data > /vol/sub/file; cat /vol/sub/file", "data\n", func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: filepath.Join(host, "made"), ContainerPath: "/vol/sub"}}
		}},
		{"read-only volume", "touch /vol/x 2>/dev/null || echo refused", "refused\n", func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: host, ContainerPath: "/vol", Readonly: true, RecursiveReadOnly: true}}
		}},
		{"working directory", "pwd", "/new/dir\n", func(c *runtimeapi.ContainerConfig) { c.WorkingDir = "/new/dir" }},
		{"environment", "echo $A", "b c\n", func(c *runtimeapi.ContainerConfig) { c.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("b c")}} }},
		{"memory limit", "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max", "67108864\n", func(c *runtimeapi.ContainerConfig) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuQuota: 50000, CpuPeriod: 100000, CpuShares: 512}
		}},
		{"cpu set", "grep Cpus_allowed_list /proc/self/status", "Cpus_allowed_list:\t0\n", func(c *runtimeapi.ContainerConfig) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpusetCpus: "0"}
		}},
		{"image volume", "test -f /image/bin/busybox && echo there; touch /image/x 2>/dev/null || echo refused; /image/bin/busybox true 2>/dev/null || echo not executable", "there\nrefused\nnot executable\n", func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/image", Image: &runtimeapi.ImageSpec{Image: f.image}, Readonly: true}}
		}},
		{"folder of an image", "test -f /image/busybox && echo there; test -e /image/bin || echo alone", "there\nalone\n", func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/image", Image: &runtimeapi.ImageSpec{Image: f.image}, ImageSubPath: "bin", Readonly: true}}
		}},
		{"terminal", "tty; tty <&2", "/dev/pts/0\r\n/dev/pts/0\r\n", func(c *runtimeapi.ContainerConfig) { c.Tty = true }},
	} {
		t.Run(c.name, func(t *testing.T) {
			f.TB = t
			if got := f.output(pod, c.script, c.change); got != c.want {
				t.Errorf("%s\nsays %q, not %q", c.script, got, c.want)
			}
		})
	}
	f.TB = t
}

func TestStartErrors(t *testing.T) {
	f := newFixture(t)
	pod := f.sandbox(nil)
	for _, c := range []struct {
		command string
		want    string
		code    int32
	}{
		{"foo", `exec: "foo": executable file not found in $PATH`, 127},
		{"/no/such", `exec: "/no/such": stat /no/such: no such file or directory`, 127},
		{"/etc/passwd", `exec: "/etc/passwd": permission denied`, 126},
	} {
		id := f.create(pod, "", func(conf *runtimeapi.ContainerConfig) { conf.Command = []string{c.command} })
		_, err := f.StartContainer(f.ctx(), &runtimeapi.StartContainerRequest{ContainerId: id})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("starting %s answered %v", c.command, err)
		}
		if st := f.status(id); st.ExitCode != c.code || st.State != runtimeapi.ContainerState_CONTAINER_EXITED {
			t.Errorf("after starting %s its status is %v", c.command, st)
		}
	}
}

func TestOOM(t *testing.T) {
	f := newFixture(t)
	id := f.run(f.sandbox(nil), "exec tail -c 500m /dev/zero", func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 16 << 20, MemorySwapLimitInBytes: 16 << 20}
	})
	if st := f.wait(id); st.Reason != "OOMKilled" || st.ExitCode != 137 {
		t.Errorf("status is %v", st)
	}
}

func TestStop(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	pod := f.sandbox(nil)
	polite := f.run(pod, "trap 'exit 5' TERM; sleep 1000 & wait", nil)
	stubborn := f.run(pod, "trap '' TERM; while :; do sleep 1000; done", nil)
	for _, c := range []struct {
		id      string
		timeout int64
		code    int32
	}{{polite, 10, 5}, {stubborn, 1, 137}} {
		start := time.Now()
		if _, err := f.StopContainer(f.ctx(), &runtimeapi.StopContainerRequest{ContainerId: c.id, Timeout: c.timeout}); err != nil {
			t.Fatal(err)
		}
		if st := f.status(c.id); c.timeout == 1 && st.ExitCode != c.code || st.State != runtimeapi.ContainerState_CONTAINER_EXITED {
			t.Errorf("status is %v", st)
		}
		t.Logf("grace %ds: %v", c.timeout, time.Since(start))
	}
}

func TestSharedProcesses(t *testing.T) {
	f := newFixture(t)
	share := func(o *runtimeapi.NamespaceOption) { o.Pid = runtimeapi.NamespaceMode_POD }
	pod := f.sandbox(func(c *runtimeapi.PodSandboxConfig) { share(c.Linux.SecurityContext.NamespaceOptions) })
	first := f.run(pod, "sleep 777", security(func(s *runtimeapi.LinuxContainerSecurityContext) { share(s.NamespaceOptions) }))
	seen := f.output(pod, "ps", security(func(s *runtimeapi.LinuxContainerSecurityContext) { share(s.NamespaceOptions) }))
	if !strings.Contains(seen, "sleep 777") || !strings.Contains(seen, "pause") {
		t.Errorf("a container of the pod sees only\n%s", seen)
	}
	alone := f.sandbox(nil)
	target := f.run(alone, "sleep 888", nil)
	seen = f.output(alone, "ps", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: target}
	}))
	if !strings.Contains(seen, "sleep 888") {
		t.Errorf("a debugging container sees only\n%s", seen)
	}
	_ = first
}

func TestHostNamespaces(t *testing.T) {
	f := newFixture(t)
	pod := f.sandbox(func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{
			Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_NODE, Ipc: runtimeapi.NamespaceMode_NODE}
	})
	got := f.output(pod, "for n in net ipc uts pid; do stat -L -c %i /proc/self/ns/$n; done", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.NamespaceOptions = &runtimeapi.NamespaceOption{
			Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_NODE, Ipc: runtimeapi.NamespaceMode_NODE}
	}))
	var want strings.Builder
	for _, n := range []string{"net", "ipc", "uts", "pid"} {
		link, err := os.Readlink("/proc/self/ns/" + n)
		if err != nil {
			t.Fatal(err)
		}
		want.WriteString(strings.Trim(link[strings.IndexByte(link, '['):], "[]") + "\n")
	}
	if got != want.String() {
		t.Errorf("the container's namespaces are %q, the host's %q", got, want.String())
	}
}

func TestStreaming(t *testing.T) {
	f := newFixture(t)
	pod := f.sandbox(nil)
	id := f.run(pod, "while read line; do echo got $line; done", func(c *runtimeapi.ContainerConfig) { c.Stdin = true })
	tty := f.run(pod, "read line; echo tty got $line; sleep 1000", func(c *runtimeapi.ContainerConfig) { c.Stdin, c.Tty = true, true })
	run := func(address string, options remotecommand.StreamOptions) error {
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		e, err := remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, u)
		if err != nil {
			t.Fatal(err)
		}
		return e.StreamWithContext(f.ctx(), options)
	}
	script := []string{"sh", "-c", "cat; echo oops >&2; exit 9"}
	resp, err := f.Exec(f.ctx(), &runtimeapi.ExecRequest{ContainerId: id, Cmd: script, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	err = run(resp.Url, remotecommand.StreamOptions{Stdin: strings.NewReader("hello"), Stdout: &out, Stderr: &errs})
	var exit interface{ ExitStatus() int }
	if !errors.As(err, &exit) || exit.ExitStatus() != 9 || out.String() != "hello" || errs.String() != "oops\n" {
		t.Errorf("exec: error %v, output %q, %q", err, out.String(), errs.String())
	}
	ttyExec, err := f.Exec(f.ctx(), &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"tty"}, Stdout: true, Tty: true})
	if err != nil {
		t.Fatal(err)
	}
	out.Reset()
	if err := run(ttyExec.Url, remotecommand.StreamOptions{Stdout: &out, Tty: true}); err != nil || !strings.HasPrefix(out.String(), "/dev/pts/") {
		t.Errorf("exec with a terminal: %v, %q", err, out.String())
	}
	t.Run("WebSocket", func(t *testing.T) { overWebSocket(t, f, id) })
	t.Run("attach", func(t *testing.T) { attach(t, f, id, false, "got line") })
	t.Run("attach to a terminal", func(t *testing.T) { attach(t, f, tty, true, "tty got line") })
}

// overWebSocket speaks v4.channel.k8s.io: each message begins with its channel.
func overWebSocket(t *testing.T, f *fixture, id string) {
	resp, err := f.Exec(f.ctx(), &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"sh", "-c", "echo out; exit 4"}, Stdout: true, Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	conf, err := websocket.NewConfig(strings.Replace(resp.Url, "http", "ws", 1), "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	conf.Protocol = []string{"v4.channel.k8s.io"}
	ws, err := conf.DialContext(f.ctx())
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	var channels [5]string
	for {
		var m []byte
		if err := websocket.Message.Receive(ws, &m); err != nil {
			break
		}
		channels[m[0]] += string(m[1:])
	}
	if channels[1] != "out\n" || !strings.Contains(channels[3], `"message":"4"`) {
		t.Errorf("the channels carried %q", channels)
	}
}

func attach(t *testing.T, f *fixture, id string, tty bool, want string) {
	resp, err := f.Attach(f.ctx(), &runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Stderr: !tty, Tty: tty})
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(resp.Url)
	if err != nil {
		t.Fatal(err)
	}
	e, err := remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, u)
	if err != nil {
		t.Fatal(err)
	}
	ctx, leave := context.WithCancel(f.ctx())
	defer leave()
	in, send := io.Pipe()
	out := &watched{want: want, found: leave}
	go func() { _, _ = send.Write([]byte("line\n")) }()
	options := remotecommand.StreamOptions{Stdin: in, Stdout: out, Tty: tty}
	if !tty {
		options.Stderr = io.Discard
	}
	err = e.StreamWithContext(ctx, options)
	if !strings.Contains(out.String(), want) {
		t.Errorf("attached, saw %q (%v)", out.String(), err)
	}
}

// watched calls found once the text has been written to it.
type watched struct {
	seen  strings.Builder // not embedded: io.Copy would go around Write
	want  string
	found func()
}

func (w *watched) String() string { return w.seen.String() }

func (w *watched) Write(p []byte) (int, error) {
	n, err := w.seen.Write(p)
	if strings.Contains(w.String(), w.want) {
		w.found()
	}
	return n, err
}

func TestErrors(t *testing.T) {
	f := newFixture(t)
	for _, c := range []struct {
		err  func() error
		code codes.Code
	}{
		{func() error {
			_, err := f.PullImage(f.ctx(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: strings.Replace(f.image, "busybox", "none", 1)}})
			return err
		}, codes.NotFound},
		{func() error {
			_, err := f.ContainerStatus(f.ctx(), &runtimeapi.ContainerStatusRequest{ContainerId: "none"})
			return err
		}, codes.NotFound},
		{func() error {
			_, err := f.PullImage(f.ctx(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "UPPER CASE"}})
			return err
		}, codes.InvalidArgument},
	} {
		if err := coded(c.err()); status.Code(err) != c.code {
			t.Errorf("got %v, not %v", err, c.code)
		}
	}
}

// A folder of an image is that of the merged layers, and never leaves the image.
func TestSubFolders(t *testing.T) {
	top, middle, bottom := t.TempDir(), t.TempDir(), t.TempDir()
	for _, d := range []string{top + "/a/b", middle + "/a/b", bottom + "/a/b", bottom + "/c", middle + "/d", bottom + "/d"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/", top+"/out"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(middle+"/d", "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(top+"/c", unix.S_IFCHR, 0); err != nil {
		t.Fatal(err)
	}
	layers := []string{top, middle, bottom}
	for sub, want := range map[string]string{
		"a/b": top + "/a/b " + middle + "/a/b " + bottom + "/a/b",
		"d":   middle + "/d",
		"c":   "", "no": "", "out": "", "out/etc": "", "../x": "", "/a": "",
	} {
		got, err := subFolders(layers, sub)
		if strings.Join(got, " ") != want || (err == nil) != (want != "") {
			t.Errorf("%s: %v %v, want %s", sub, got, err, want)
		}
	}
}

// A child's descriptors are laid out in stages, whose numbers depend on ours.
func TestAnyNumberOfDescriptors(t *testing.T) {
	f := newFixture(t)
	id := f.run(f.sandbox(nil), "sleep 1000", nil)
	for range 90 {
		file, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if r := f.exec(id, "ls", "/proc/self/fd"); string(r.Stdout) != "0\n1\n2\n3\n" || r.ExitCode != 0 {
			t.Fatalf("with descriptor %d open, a command has the descriptors %q", file.Fd(), r.Stdout)
		}
	}
}
