package container

import (
	"archive/tar"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// filler takes a file system's last byte, and gives it back.
type filler struct{ file string }

func (f filler) fill(t *testing.T) {
	t.Helper()
	w, err := os.Create(f.file)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for size := 1 << 20; size > 0; size /= 2 {
		for err == nil {
			_, err = w.Write(make([]byte, size))
		}
		err = nil
	}
}

func (f filler) empty(t *testing.T) {
	t.Helper()
	if err := os.Remove(f.file); err != nil {
		t.Fatal(err)
	}
}

// While the disk is full nothing new can be made, and the reason is said; what runs
// goes on. Nothing half made is left, and when there is room again all is as before.
func TestDiskFull(t *testing.T) {
	dir, err := os.MkdirTemp("", "full-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Skipf("mounting a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	t.Setenv("TMPDIR", dir)
	f := newFixture(t)
	full := filler{filepath.Join(dir, "filler")}
	vol, err := os.MkdirTemp("/tmp", "knarr-vol-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(vol) })
	pod := f.sandbox(nil)
	mount := func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{{HostPath: vol, ContainerPath: "/vol"}}
	}
	talks := f.run(pod, "echo first; until test -e /vol/go; do sleep 0.01; done; head -c 3000000 /dev/zero | tr '\\0' x | sed 's/.\\{99\\}/&\\n/g'; touch /vol/said; "+
		"until test -e /vol/on; do sleep 0.01; done; echo; echo last; until test -e /vol/end; do sleep 0.01; done; exit 7", mount)
	dies := f.run(pod, "until test -e /vol/die; do sleep 0.01; done; exit 8", mount)
	waiting := f.create(pod, "true", nil)
	stops, goes := f.sandbox(nil), f.sandbox(nil)
	f.run(goes, "sleep 1000", nil)
	other := push(t, "test/other:1", v1.Config{}, busyboxLayer(t), layerOf(t, entry{Header: tar.Header{Name: "big", Typeflag: tar.TypeReg}, body: strings.Repeat("x", 3<<20)}))
	say := func(name string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(vol, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}

	full.fill(t)
	for what, try := range map[string]func() error{
		"pull": func() error {
			_, err := f.PullImage(f.ctx(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: other}})
			return err
		},
		"pod": func() error {
			_, err := f.RunPodSandbox(f.ctx(), &runtimeapi.RunPodSandboxRequest{Config: f.podConfig(nil)})
			return err
		},
		"container": func() error {
			_, err := f.CreateContainer(f.ctx(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: &runtimeapi.ContainerConfig{
				Metadata: &runtimeapi.ContainerMetadata{Name: "new"}, Image: &runtimeapi.ImageSpec{Image: f.image}, Command: []string{"true"},
			}})
			return err
		},
		"start": func() error {
			_, err := f.StartContainer(f.ctx(), &runtimeapi.StartContainerRequest{ContainerId: waiting})
			return err
		},
	} {
		if err := try(); err == nil || !strings.Contains(err.Error(), "no space left") && !strings.Contains(err.Error(), "disk is almost full") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if n := len(f.podItems(nil)); n != 3 {
		t.Errorf("there are %d pods", n)
	}
	if n := len(f.containerItems(nil)); n != 4 {
		t.Errorf("there are %d containers", n)
	}
	say("go")
	await(t, func() bool { _, err := os.Stat(filepath.Join(vol, "said")); return err == nil }, "a container waits for its log")
	if r := f.exec(talks, "echo", "well"); string(r.Stdout) != "well\n" {
		t.Errorf("a command answered %v", r)
	}
	say("die")
	if st := f.wait(dies); st.ExitCode != 8 {
		t.Errorf("the end of a container: %v", st)
	}

	// Who wants room again removes pods.
	for _, id := range []string{stops, goes} {
		if _, err := f.StopPodSandbox(f.ctx(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
			t.Error(err)
		}
	}
	if _, err := f.RemovePodSandbox(f.ctx(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: goes}); err != nil {
		t.Error(err)
	}
	full.empty(t)
	say("on")
	// The next runtime knows of the end that could not be written down.
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if f.Server, err = New(context.Background(), f.cfg); err != nil {
		t.Fatal(err)
	}
	if st := f.wait(dies); st.ExitCode != 8 {
		t.Errorf("the end of a container, after a restart: %v", st)
	}
	for _, p := range f.podItems(nil) {
		if ready := p.State == runtimeapi.PodSandboxState_SANDBOX_READY; ready != (p.Id == pod) {
			t.Errorf("after a restart, pod %s of %s (there), %s (stopped) and %s (removed) is %s", p.Id, pod, stops, goes, p.State)
		}
	}
	say("end")
	if st := f.wait(talks); st.ExitCode != 7 {
		t.Errorf("the container that went on ended with %v", st)
	}
	out, _ := f.logText(talks) // every line is whole
	if !strings.HasPrefix(out, "first\n") || !strings.HasSuffix(out, "last\n") || len(out) > 3100000 {
		t.Errorf("its log has %d bytes and ends with %q", len(out), out[max(0, len(out)-40):])
	}
	f.image = other
	f.pull(other)
	if got := f.output(f.sandbox(nil), "echo well", nil); got != "well\n" {
		t.Errorf("afterwards a container says %q", got)
	}
}

// await polls what is only seen from outside.
func await(t *testing.T, done func() bool, otherwise string) {
	t.Helper()
	end := time.After(10 * time.Second)
	for tick := time.NewTicker(5 * time.Millisecond); !done(); {
		select {
		case <-tick.C:
		case <-end:
			t.Fatal(otherwise)
		}
	}
}
