package container

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/container/oci"
)

func TestSurvivesKill(t *testing.T) { survivesKill(t, newFixture(t)) }

func survivesKill(t *testing.T, f *fixture) {
	if err := f.Close(); err != nil { // the victim takes the folders over
		t.Fatal(err)
	}
	vol := t.TempDir()
	conf := func(name, script string, tty bool) message[*runtimeapi.ContainerConfig] {
		return message[*runtimeapi.ContainerConfig]{&runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: f.image},
			Command: []string{"sh", "-c", script}, LogPath: name + ".log", Tty: tty, Stdin: tty,
			Mounts: []*runtimeapi.Mount{{HostPath: vol, ContainerPath: "/vol"}},
			Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			}},
		}}
	}
	victim := f.child(order{Do: "victim", Pod: message[*runtimeapi.PodSandboxConfig]{f.podConfig(nil)}, Make: []message[*runtimeapi.ContainerConfig]{
		conf("lives", "i=0; while ! test -e /vol/end; do i=$((i+1)); echo $i; sleep 0.01; done; echo end", false),
		conf("dies", "until test -e /vol/go; do sleep 0.01; done; echo bye; exit 42", false),
		conf("terminal", "read line; echo got $line", true),
	}})
	ids := victim.until("ready", "id")
	victim.kill()

	// One of them ends while no runtime is there.
	var dead containerRecord
	if err := load(f.containerRecord(ids[1]), &dead); err != nil {
		t.Fatal(err)
	}
	pidfd, err := unix.PidfdOpen(dead.Process.PID, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	if err := os.WriteFile(filepath.Join(vol, "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 10000); err != nil {
		t.Fatal(err)
	}
	var alive containerRecord
	if err := load(f.containerRecord(ids[0]), &alive); err != nil {
		t.Fatal(err)
	}

	if f.Server, err = New(context.Background(), f.cfg); err != nil {
		t.Fatal(err)
	}
	if st := f.wait(ids[1]); st.ExitCode != later(42) || st.Reason != "Error" {
		t.Errorf("the container that ended meanwhile: %v", st)
	}
	if out, _ := f.logText(ids[1]); out != "bye\n" {
		t.Errorf("its log: %q", out)
	}
	c, err := f.container(ids[0])
	if err != nil {
		t.Fatal(err)
	}
	if st := f.status(ids[0]); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING || c.child.PID != alive.Process.PID || st.StartedAt != alive.Started.UnixNano() {
		t.Errorf("the container that lives on: %v", st)
	}
	if r := f.exec(ids[0], "echo", "hi"); string(r.Stdout) != "hi\n" {
		t.Errorf("exec answered %v", r)
	}
	if err := os.WriteFile(filepath.Join(vol, "end"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if st := f.wait(ids[0]); st.ExitCode != 0 {
		t.Errorf("the container that lived on ended with %v", st)
	}
	text, _ := f.logText(ids[0])
	lines := strings.Fields(text)
	for i, l := range lines[:len(lines)-1] {
		if l != fmt.Sprint(i+1) {
			t.Fatalf("line %d of the log is %q: output was lost", i+1, l)
		}
	}
	attach(t, f, ids[2], true, "got line")
	if st := f.wait(ids[2]); st.ExitCode != 0 {
		t.Errorf("the container with a terminal ended with %v", st)
	}
}

// later is what a runtime can know of the exit code of a container that ended before its
// time: kernels before 6.15 do not tell.
func later(code int32) int32 {
	var u unix.Utsname
	var major, minor int
	if err := unix.Uname(&u); err != nil {
		return code
	}
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err == nil && (major < 6 || major == 6 && minor < 15) {
		return oci.UnknownExit
	}
	return code
}

// A container that an earlier runtime made, and one that it was killed while starting,
// can be started.
func TestStartsAfterRestart(t *testing.T) {
	eachExecutor(t, func(t *testing.T, f *fixture) {
		pod := f.sandbox(nil)
		whole, half := f.create(pod, "echo whole", nil), f.create(pod, "echo half", nil)
		// What is in its group without a record of a start is what a kill leaves.
		stray := exec.Command("sleep", "1000")
		if err := stray.Start(); err != nil {
			t.Fatal(err)
		}
		if err := f.containers[half].group.JoinAll(stray.Process.Pid); err != nil {
			t.Error(err)
		}
		f.hand(func() {})
		if err := stray.Wait(); err == nil || err.Error() != "signal: killed" {
			t.Errorf("the process that was left ended with %v", err)
		}
		for id, want := range map[string]string{whole: "whole\n", half: "half\n"} {
			if _, err := f.StartContainer(f.ctx(), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
				t.Error(err)
				continue
			}
			f.wait(id)
			if out, _ := f.logText(id); out != want {
				t.Errorf("%q, not %q", out, want)
			}
		}
	})
}
