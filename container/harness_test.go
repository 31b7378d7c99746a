package container

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	ggcrlog "log"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fixture is a runtime on folders of its own, with a registry beside it.
type fixture struct {
	testing.TB
	*Server
	cfg   Config
	image string
	// handler of the pods that are made
	handler string
	logs    string
	n       int
}

// handlerEnv names the runtime handler that the tests run with: those of runc are a
// wide net, though not every test is about what a handler can do.
const handlerEnv = "KNARR_TEST_HANDLER"

const busybox = "/bin/busybox"

// newFixture needs root and a static busybox; without these it says so and skips.
func newFixture(t testing.TB) *fixture {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("running containers needs root")
	}
	if _, err := os.Stat(busybox); err != nil {
		t.Skip("running containers needs a static busybox in " + busybox + " (package busybox-static)")
	}
	// Not t.TempDir: socket paths must be short.
	dir, err := os.MkdirTemp("", "knarr-c-")
	if err != nil {
		t.Fatal(err)
	}
	// Users of pods pass through the folder of volatile files, and not through the other, as with the real ones.
	if err := errors.Join(os.Chmod(dir, 0o711), os.Mkdir(filepath.Join(dir, "data"), 0o700)); err != nil {
		t.Fatal(err)
	}
	f := &fixture{TB: t, logs: filepath.Join(dir, "logs"), handler: os.Getenv(handlerEnv)}
	f.cfg = Config{
		Root: filepath.Join(dir, "data", "root"), Run: filepath.Join(dir, "run"), CgroupParent: filepath.Base(dir), StreamAddr: "127.0.0.1:0",
		Log: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	f.Server, err = New(context.Background(), f.cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := f.Destroy(ctx); err != nil {
			t.Errorf("destroying the runtime: %v", err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("removing the runtime's folders: %v", err)
		}
		checkLeaks(t, filepath.Base(dir))
	})
	f.image = pushBusybox(t, v1.Config{})
	f.pull(f.image)
	return f
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// checkLeaks looks for mounts and control groups that bear the fixture's name.
func checkLeaks(t testing.TB, mark string) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, mark) {
			t.Errorf("left behind: mount %s", line)
		}
	}
	left, err := filepath.Glob("/sys/fs/cgroup/*/" + mark)
	if err != nil {
		t.Fatal(err)
	}
	more, err := filepath.Glob("/sys/fs/cgroup/" + mark)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range append(left, more...) {
		t.Errorf("left behind: control group %s", d)
	}
	procs, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		data, err := os.ReadFile(p)
		// A dead process that its parent has not collected yet is not ours to collect.
		stat, _ := os.ReadFile(filepath.Join(filepath.Dir(p), "stat"))
		if err == nil && strings.Contains(string(data), mark) && !strings.Contains(string(stat), ") Z ") && !ends(filepath.Base(filepath.Dir(p))) {
			t.Errorf("left behind: process %s: %s", p, data)
		}
	}
}

// ends waits a little for a process that has been killed and is on its way out.
func ends(text string) bool {
	pid, err := strconv.Atoi(text)
	if err != nil {
		return false
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return true // gone
	}
	defer unix.Close(fd)
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5000)
	return err == nil && n == 1
}

// entry is one member of a test layer.
type entry struct {
	tar.Header
	body string
}

func layerOf(t testing.TB, entries ...entry) v1.Layer {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		e.Size = int64(len(e.body))
		if e.Mode == 0 {
			e.Mode = 0o755
		}
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	data := buf.Bytes()
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func busyboxLayer(t testing.TB) v1.Layer {
	t.Helper()
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	entries := []entry{
		{Header: tar.Header{Name: "bin/", Typeflag: tar.TypeDir}},
		{Header: tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg}, body: string(program)},
		{Header: tar.Header{Name: "etc/", Typeflag: tar.TypeDir}},
		{Header: tar.Header{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644}, body: "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1001::/home/web:/bin/sh\n"},
		{Header: tar.Header{Name: "etc/group", Typeflag: tar.TypeReg, Mode: 0o644}, body: "root:x:0:\nweb:x:1001:\nextra:x:2000:web\n"},
		{Header: tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}},
		{Header: tar.Header{Name: "root/", Typeflag: tar.TypeDir, Mode: 0o700}},
	}
	for _, n := range strings.Fields("sh cat ls echo sleep id hostname mount umount unshare mknod dd true false stat tty stty printf kill env pwd touch chroot date nc ps wc head tail grep httpd yes df") {
		entries = append(entries, entry{Header: tar.Header{Name: "bin/" + n, Typeflag: tar.TypeSymlink, Linkname: "busybox"}})
	}
	return layerOf(t, entries...)
}

// push serves an image from a registry that lives as long as the test.
func push(t testing.TB, repo string, config v1.Config, layers ...v1.Layer) string {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.Config, cf.OS, cf.Architecture = config, "linux", "amd64"
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(registry.New(registry.Logger(ggcrlog.New(io.Discard, "", 0))))
	t.Cleanup(srv.Close)
	ref, err := name.ParseReference(strings.TrimPrefix(srv.URL, "http://") + "/" + repo)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	return ref.String()
}

func pushBusybox(t testing.TB, config v1.Config) string {
	t.Helper()
	return push(t, "test/busybox:1", config, busyboxLayer(t))
}

func (f *fixture) pull(ref string) string {
	f.Helper()
	resp, err := f.PullImage(f.ctx(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		f.Fatal(err)
	}
	return resp.ImageRef
}

// ctx ends long before the test run gives up, so that a hang names its test.
func (f *fixture) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	f.Cleanup(cancel)
	return ctx
}

func (f *fixture) podConfig(change func(*runtimeapi.PodSandboxConfig)) *runtimeapi.PodSandboxConfig {
	f.n++
	c := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "pod", Uid: fmt.Sprint("uid", f.n), Namespace: "default"},
		Hostname:     "pod-host",
		LogDirectory: filepath.Join(f.logs, fmt.Sprint(f.n)),
		DnsConfig:    &runtimeapi.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"default.svc.cluster.local"}, Options: []string{"ndots:5"}},
		Labels:       map[string]string{"app": "test"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: fmt.Sprint("kubepods/pod", f.n),
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			},
		},
	}
	if change != nil {
		change(c)
	}
	return c
}

func (f *fixture) sandbox(change func(*runtimeapi.PodSandboxConfig)) string {
	f.Helper()
	resp, err := f.RunPodSandbox(f.ctx(), &runtimeapi.RunPodSandboxRequest{Config: f.podConfig(change), RuntimeHandler: f.handler})
	if err != nil {
		f.Fatal(err)
	}
	return resp.PodSandboxId
}

// create makes a container that runs a shell script.
func (f *fixture) create(pod, script string, change func(*runtimeapi.ContainerConfig)) string {
	f.Helper()
	f.n++
	conf := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: fmt.Sprint("c", f.n)},
		Image:    &runtimeapi.ImageSpec{Image: f.image},
		Command:  []string{"sh", "-c", script},
		LogPath:  fmt.Sprintf("c%d.log", f.n),
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
			MaskedPaths:      []string{"/proc/kcore", "/proc/keys", "/proc/acpi", "/sys/firmware"},
			ReadonlyPaths:    []string{"/proc/sys", "/proc/sysrq-trigger"},
		}},
	}
	if change != nil {
		change(conf)
	}
	resp, err := f.CreateContainer(f.ctx(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: conf})
	if err != nil {
		f.Fatal(err)
	}
	return resp.ContainerId
}

func (f *fixture) run(pod, script string, change func(*runtimeapi.ContainerConfig)) string {
	f.Helper()
	id := f.create(pod, script, change)
	if _, err := f.StartContainer(f.ctx(), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		f.Fatal(err)
	}
	return id
}

// wait blocks until the container has ended.
func (f *fixture) wait(id string) *runtimeapi.ContainerStatus {
	f.Helper()
	c, err := f.container(id)
	if err != nil {
		f.Fatal(err)
	}
	select {
	case <-c.exited:
	case <-f.ctx().Done():
		f.Fatal("the container does not end")
	}
	return f.status(id)
}

func (f *fixture) status(id string) *runtimeapi.ContainerStatus {
	f.Helper()
	resp, err := f.ContainerStatus(f.ctx(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		f.Fatal(err)
	}
	return resp.Status
}

// logText is the content of a container's log, by stream.
func (f *fixture) logText(id string) (stdout, stderr string) {
	f.Helper()
	data, err := os.ReadFile(f.status(id).LogPath)
	if err != nil {
		f.Fatal(err)
	}
	var texts [2]strings.Builder
	for line := range strings.Lines(string(data)) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(parts) != 4 {
			f.Fatalf("malformed log line %q", line)
		}
		to := &texts[0]
		if parts[1] == "stderr" {
			to = &texts[1]
		}
		to.WriteString(parts[3])
		if parts[2] == "F" {
			to.WriteByte('\n')
		}
	}
	return texts[0].String(), texts[1].String()
}

// output runs a script to its end and returns its stdout.
func (f *fixture) output(pod, script string, change func(*runtimeapi.ContainerConfig)) string {
	f.Helper()
	id := f.run(pod, script, change)
	st := f.wait(id)
	out, errs := f.logText(id)
	if st.ExitCode != 0 {
		f.Fatalf("%q ended with %d: %s%s", script, st.ExitCode, out, errs)
	}
	return out
}

func (f *fixture) exec(id string, cmd ...string) *runtimeapi.ExecSyncResponse {
	f.Helper()
	resp, err := f.ExecSync(f.ctx(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: cmd})
	if err != nil {
		f.Fatal(err)
	}
	return resp
}
