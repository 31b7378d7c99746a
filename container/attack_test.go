package container

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/container/cgroup"
	"knarr.dev/knarr/container/oci"
)

func pidsLimit(n int64) cgroup.Limits { return cgroup.Limits{PIDs: n} }

// mighty takes all restraints away that a pod may have taken away, short of being privileged.
func mighty(c *runtimeapi.ContainerConfig) {
	sec := c.Linux.SecurityContext
	sec.Seccomp, sec.MaskedPaths, sec.ReadonlyPaths = nil, nil, nil
	sec.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"ALL"}}
}

// A link in the image where a volume is to be mounted leads back into the image.
func TestLinksAsMountPoints(t *testing.T) {
	f := newFixture(t)
	host, vol := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(vol, "mine"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	up := strings.Repeat("../", 40)
	f.image = push(t, "test/links:1", v1.Config{}, busyboxLayer(t), layerOf(t,
		entry{Header: tar.Header{Name: "up", Typeflag: tar.TypeSymlink, Linkname: up + host}},
		entry{Header: tar.Header{Name: "abs", Typeflag: tar.TypeSymlink, Linkname: host}},
		entry{Header: tar.Header{Name: "magic", Typeflag: tar.TypeSymlink, Linkname: "/proc/1/root" + host}},
		entry{Header: tar.Header{Name: "etc/hostname", Typeflag: tar.TypeSymlink, Linkname: up + host + "/hostname"}},
	))
	f.pull(f.image)
	pod := f.sandbox(nil)
	for link, script := range map[string]string{"up": "ls /up/in", "abs": "ls /abs/in", "magic": "echo mine"} { // /proc is mounted over what magic leads to
		got := f.output(pod, script, func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: vol, ContainerPath: "/" + link + "/in"}}
			if link != "magic" {
				c.WorkingDir = "/" + link + "/work"
			}
		})
		if got != "mine\n" {
			t.Errorf("behind /%s/in are %q", link, got)
		}
	}
	if left, err := os.ReadDir(host); err != nil || len(left) != 0 {
		t.Errorf("on the host appeared %v (%v)", left, err)
	}
}

// The program that starts every process is visible in the container for a moment.
// Writing to it would be running code on the host.
func TestStartingProgramIsSealed(t *testing.T) {
	f := newFixture(t)
	id := f.run(f.sandbox(nil), "while :; do for p in /proc/[0-9]*; do echo x 2>/dev/null > $p/exe; done; done 2>/dev/null", mighty)
	for range 40 {
		if r := f.exec(id, "echo", "well"); string(r.Stdout) != "well\n" {
			t.Fatalf("a command answered %v", r)
		}
	}
	// Run by its own name, it is a program without orders.
	if _, err := f.ExecSync(f.ctx(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"/proc/self/exe"}}); err == nil {
		t.Log("the container's own program ran, not ours")
	}
	if err := oci.CheckProgram(f.launcher); err != nil {
		t.Error(err)
	}
}

// Mounts made in a container stay there, unless its volume says otherwise.
func TestMountsStayInside(t *testing.T) {
	f := newFixture(t)
	vol := t.TempDir()
	if err := os.Mkdir(filepath.Join(vol, "m"), 0o755); err != nil {
		t.Fatal(err)
	}
	pod := f.sandbox(nil)
	for _, p := range []runtimeapi.MountPropagation{runtimeapi.MountPropagation_PROPAGATION_PRIVATE, runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER} {
		out := f.output(pod, "mount -t tmpfs none /vol/m && touch /vol/m/x && mount -t tmpfs none /tmp && ls /vol/m", func(c *runtimeapi.ContainerConfig) {
			mighty(c)
			c.Mounts = []*runtimeapi.Mount{{HostPath: vol, ContainerPath: "/vol", Propagation: p}}
		})
		if out != "x\n" {
			t.Errorf("%s: inside are %q", p, out)
		}
		var here, above unix.Statx_t
		if err := unix.Statx(unix.AT_FDCWD, filepath.Join(vol, "m"), 0, unix.STATX_MNT_ID, &here); err != nil {
			t.Fatal(err)
		}
		if err := unix.Statx(unix.AT_FDCWD, vol, 0, unix.STATX_MNT_ID, &above); err != nil {
			t.Fatal(err)
		}
		if here.Mnt_id != above.Mnt_id {
			t.Errorf("%s: the mount came out", p)
		}
	}
}

// A container cannot lift its own limits, leave its group, or reach devices.
func TestGroupsAndDevices(t *testing.T) {
	f := newFixture(t)
	pod := f.sandbox(nil)
	for name, script := range map[string]string{
		"limit":     "for l in $(find_ /sys/fs/cgroup); do echo -1 > $l; done",
		"leaving":   "for d in /sys/fs/cgroup /sys/fs/cgroup/*; do echo $$ > $d/../cgroup.procs; echo $$ > $d/cgroup.procs; done",
		"release":   "for d in /sys/fs/cgroup /sys/fs/cgroup/*; do echo /bin/true > $d/release_agent; echo 1 > $d/notify_on_release; done",
		"disk":      "mknod /d b $(stat -c '%t %T' /dev/null | cut -c1-1) 0; mknod /vda b 254 0 && dd if=/vda of=/x count=1",
		"memory":    "mknod /mem c 1 1 && dd if=/mem of=/x count=1",
		"writing":   "mknod /vda2 b 254 0 && dd if=/dev/zero of=/vda2 count=1",
		"host proc": "echo h > /proc/sysrq-trigger",
	} {
		change := func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.Seccomp = nil
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}
		}
		// Each single write must fail: what succeeds is counted.
		counted := "ok=0; " + strings.NewReplacer("; done", " && ok=$((ok+1)); done", "find_", "ls -d").Replace(script)
		if !strings.Contains(script, "done") {
			counted = "ok=0; { " + script + "; } && ok=1"
		}
		if got := f.output(pod, "{ "+counted+"; } 2>/dev/null; echo $ok", change); got != "0\n" {
			t.Errorf("%s: %q\n%s", name, got, counted)
		}
	}
}

// A fork bomb ends at its pod's limit; the node serves on, and the pod can be stopped.
func TestForkBomb(t *testing.T) {
	f := newFixture(t)
	bomb := f.sandbox(nil)
	p, err := f.pod(bomb)
	if err != nil {
		t.Fatal(err)
	}
	group := f.layout.Group(p.Cgroup)
	if err := group.Apply(pidsLimit(64)); err != nil { // as a kubelet does
		t.Fatal(err)
	}
	id := f.run(bomb, "f() { f | f & }; f; while :; do :; done", nil)
	other := f.run(f.sandbox(nil), "sleep 1000", nil)
	for range 20 {
		if r := f.exec(other, "echo", "well"); string(r.Stdout) != "well\n" {
			t.Fatalf("beside a fork bomb a command answered %v", r)
		}
	}
	if n := group.Stats().PIDs; n > 64 {
		t.Errorf("the pod has %d processes", n)
	}
	if _, err := f.StopPodSandbox(f.ctx(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: bomb}); err != nil {
		t.Fatal(err)
	}
	if st := f.wait(id); st.ExitCode != 137 {
		t.Errorf("the bomb ended with %v", st)
	}
	if n := group.Stats().PIDs; n != 0 {
		t.Errorf("%d processes are left", n)
	}
}

// A pod may have as many processes as its limit says, the first included.
func TestLastProcess(t *testing.T) {
	f := newFixture(t)
	pod := f.sandbox(nil)
	p, err := f.pod(pod)
	if err != nil {
		t.Fatal(err)
	}
	group := f.layout.Group(p.Cgroup)
	if err := group.Apply(pidsLimit(1)); err != nil {
		t.Fatal(err)
	}
	id := f.create(pod, "", func(c *runtimeapi.ContainerConfig) { c.Command = []string{"sleep", "1000"} })
	if _, err := f.StartContainer(f.ctx(), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	if n := group.Stats().PIDs; n != 1 {
		t.Errorf("the pod has %d processes", n)
	}
	if r, err := f.ExecSync(f.ctx(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}}); err == nil {
		t.Errorf("a command beyond the limit answered %v", r)
	}
	removed(t, f, pod)
}

// Containers that die of hunger one after another harm nobody else.
func TestStormOfOOM(t *testing.T) {
	f := newFixture(t)
	pod := f.sandbox(nil)
	other := f.run(pod, "sleep 1000", nil)
	var ids []string
	for range 6 {
		ids = append(ids, f.run(pod, "x=x; while :; do x=$x$x; done", func(c *runtimeapi.ContainerConfig) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 8 << 20, MemorySwapLimitInBytes: 8 << 20}
		}))
	}
	for _, id := range ids {
		if st := f.wait(id); st.Reason != "OOMKilled" || st.ExitCode != 137 {
			t.Errorf("a hungry container ended with %v", st)
		}
	}
	if r := f.exec(other, "echo", "well"); string(r.Stdout) != "well\n" {
		t.Errorf("beside them a command answered %v", r)
	}
}

// never reads: its writes wait until it is let go. The first tells that it waits.
type never struct {
	waits chan<- struct{}
	left  <-chan struct{}
}

func (n never) Write([]byte) (int, error) {
	select {
	case n.waits <- struct{}{}:
	default:
	}
	<-n.left
	return 0, io.ErrClosedPipe
}

// A client that does not read cannot keep a container from ending.
func TestClientThatDoesNotRead(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	id := f.run(f.sandbox(nil), "yes", nil)
	c, err := f.container(id)
	if err != nil {
		t.Fatal(err)
	}
	waits, left := make(chan struct{}, 1), make(chan struct{})
	a := c.output.attach(never{waits, left}, nil)
	go func() { <-a.failed; close(left) }() // as the streaming server closes the client's stream
	ctx, cancel := context.WithTimeout(context.Background(), attachGrace+10*time.Second)
	defer cancel()
	select {
	case <-waits:
	case <-ctx.Done():
		t.Fatal("nothing is written to the client")
	}
	if _, err := f.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	if st := f.wait(id); st.ExitCode != 137 {
		t.Errorf("it ended with %v", st)
	}
}

// What a container writes is never held in memory beyond a pipe: who writes faster
// than the log takes it has to wait.
func TestLogFlood(t *testing.T) {
	f := newFixture(t)
	id := f.run(f.sandbox(nil), "yes $(printf %0999d 0) | head -c 3000000; echo end >&2", nil)
	if st := f.wait(id); st.ExitCode != 0 {
		t.Fatalf("it ended with %v", st)
	}
	out, errs := f.logText(id)
	if len(out) != 3000000 || errs != "end\n" {
		t.Errorf("the log holds %d bytes and %q", len(out), errs)
	}
}

// A layer of a few kilobytes that would fill the disk is refused before it does.
func TestBombOfNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	small := t.TempDir()
	if err := unix.Mount("none", small, "tmpfs", 0, "size=96m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(small, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	cfg := f.cfg
	cfg.Root, cfg.Run, cfg.CgroupParent = filepath.Join(small, "root"), filepath.Join(small, "run"), f.cfg.CgroupParent+"-b"
	s, err := New(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Destroy(f.ctx()); err != nil {
			t.Error(err)
		}
	}()
	bomb := push(t, "test/bomb:1", v1.Config{}, layerOf(t, entry{Header: tar.Header{Name: "zeros", Typeflag: tar.TypeReg}, body: string(bytes.Repeat([]byte{0}, 200<<20))}))
	_, err = s.PullImage(f.ctx(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: bomb}})
	if err == nil || !strings.Contains(err.Error(), "disk is almost full") {
		t.Errorf("the bomb was answered with %v", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(small, &st); err != nil || st.Bavail < st.Blocks*9/10 {
		t.Errorf("after the bomb %d of %d blocks are free (%v)", st.Bavail, st.Blocks, err)
	}
}

// A command that is executed in a container, and a container that joins the processes of
// another, come from the host. On their way in they must not be windows through which
// the container sees the host's files, not even if it may trace processes. The pod's own
// first process must not be one either.
func TestNoWindowsToTheHost(t *testing.T) {
	f := newFixture(t)
	host := t.TempDir()
	if err := os.WriteFile(filepath.Join(host, "mark"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	look := "while :; do for p in /proc/[0-9]*; do for w in root cwd; do test -e $p/$w" + host + "/mark && echo $w shows the host; done; " +
		"for l in $p/fd/*; do test -e $l" + host + "/mark && echo a descriptor shows the host; done; done; done 2>/dev/null"
	for name, mode := range map[string]runtimeapi.NamespaceMode{"commands": runtimeapi.NamespaceMode_CONTAINER, "containers": runtimeapi.NamespaceMode_POD} {
		pod := f.sandbox(func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions.Pid = mode })
		in := func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.NamespaceOptions.Pid = mode }
		id := f.run(pod, look, func(c *runtimeapi.ContainerConfig) { in(c); mighty(c) })
		for range 100 {
			f.exec(id, "true")
			if mode == runtimeapi.NamespaceMode_POD {
				f.output(pod, "true", in)
			}
		}
		if _, err := f.StopContainer(f.ctx(), &runtimeapi.StopContainerRequest{ContainerId: id}); err != nil {
			t.Fatal(err)
		}
		if out, _ := f.logText(id); out != "" {
			t.Errorf("%s: seen %d times, first %q", name, strings.Count(out, "\n"), out[:min(len(out), 80)])
		}
	}
}

// A container may do what it likes with the descriptors that it is given: none of them is
// the host's null device.
func TestNullIsNotTheHosts(t *testing.T) {
	look := func() (st unix.Stat_t) {
		if err := unix.Stat("/dev/null", &st); err != nil {
			t.Fatal(err)
		}
		return st
	}
	before := look()
	t.Cleanup(func() { // else nothing on this machine works any more
		if err := errors.Join(os.Chmod("/dev/null", os.FileMode(before.Mode&0o777)), os.Chown("/dev/null", int(before.Uid), int(before.Gid))); err != nil {
			t.Error(err)
		}
	})
	eachExecutor(t, func(t *testing.T, f *fixture) {
		const spoil = "for n in 0 1 2; do chmod 600 /proc/self/fd/$n; chown 1000:1000 /proc/self/fd/$n; done 2>/dev/null; true"
		for name, change := range map[string]func(*runtimeapi.ContainerConfig){
			"as root": nil,
			"as another": func(c *runtimeapi.ContainerConfig) {
				c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
			},
		} {
			id := f.run(f.sandbox(nil), spoil+"; exec sleep 1000", change)
			if r := f.exec(id, "sh", "-c", spoil); r.ExitCode != 0 {
				t.Errorf("%s: %v", name, r)
			}
			if now := look(); now.Mode != before.Mode || now.Uid != before.Uid || now.Gid != before.Gid {
				t.Fatalf("%s: the host's null device is %o of %d:%d, and was %o of %d:%d", name, now.Mode, now.Uid, now.Gid, before.Mode, before.Uid, before.Gid)
			}
		}
		if out := f.output(f.sandbox(nil), "stat -L -c '%a %u' /proc/self/fd/0; wc -c < /dev/stdin", nil); out != "666 0\n0\n" {
			t.Errorf("another container's is %q", out)
		}
	})
}

// keyringEnv has the test binary print the number of its session keyring.
const keyringEnv = "KNARR_TEST_KEYRING"

func printKeyring() {
	fmt.Println(unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false))
	os.Exit(0)
}

// A container has a session keyring of its own, not that of whoever started the runtime.
func TestKeysAreNotShared(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	mine, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false)
	if err != nil {
		t.Skip("this kernel keeps no keys: ", err)
	}
	eachExecutor(t, func(t *testing.T, f *fixture) {
		if strings.HasSuffix(t.Name(), "/crun") {
			t.Skip("crun gives commands in containers no keyring of their own")
		}
		seen := map[string]bool{fmt.Sprintln(mine, nil): true}
		for range 2 {
			id := f.run(f.sandbox(nil), "sleep 1000", func(c *runtimeapi.ContainerConfig) {
				mighty(c)
				c.Envs = append(c.Envs, &runtimeapi.KeyValue{Key: keyringEnv, Value: []byte("1")})
				for target, source := range map[string]string{"/self": self, "/lib": "/lib", "/lib64": "/lib64"} {
					if _, err := os.Stat(source); err == nil {
						c.Mounts = append(c.Mounts, &runtimeapi.Mount{ContainerPath: target, HostPath: source, Readonly: true})
					}
				}
			})
			r := f.exec(id, "/self")
			ring := string(r.Stdout)
			if !strings.HasSuffix(ring, "<nil>\n") || seen[ring] {
				t.Errorf("the keyring %q of %v: %v", ring, seen, r)
			}
			seen[ring] = true
		}
	})
}
