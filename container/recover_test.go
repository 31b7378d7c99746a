package container

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// victimEnv makes the test binary a runtime that is about to be killed.
const victimEnv = "KNARR_CONTAINER_TEST_VICTIM"

type victimOrder struct {
	Config  Config
	Handler string
	Pod     message[*runtimeapi.PodSandboxConfig]
	Make    []message[*runtimeapi.ContainerConfig]
}

func TestMain(m *testing.M) {
	if order := os.Getenv(victimEnv); order != "" {
		if err := victim(order); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		return
	}
	if order := os.Getenv(workerEnv); order != "" {
		fmt.Fprintln(os.Stderr, "worker:", worker(order))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// victim runs the containers of the order, prints their IDs and waits to be killed.
func victim(text string) error {
	var order victimOrder
	if err := json.Unmarshal([]byte(text), &order); err != nil {
		return err
	}
	ctx := context.Background()
	s, err := New(ctx, order.Config)
	if err != nil {
		return err
	}
	pod, err := s.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: order.Pod.m, RuntimeHandler: order.Handler})
	if err != nil {
		return err
	}
	for _, m := range order.Make {
		c, err := s.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod.PodSandboxId, Config: m.m})
		if err != nil {
			return err
		}
		if _, err := s.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
			return err
		}
		fmt.Println("id", c.ContainerId)
	}
	fmt.Println("ready")
	select {}
}

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
	cfg := f.cfg
	cfg.Log = nil
	order, err := json.Marshal(victimOrder{
		Config: cfg, Handler: f.handler, Pod: message[*runtimeapi.PodSandboxConfig]{f.podConfig(nil)},
		Make: []message[*runtimeapi.ContainerConfig]{
			conf("lives", "i=0; while ! test -e /vol/end; do i=$((i+1)); echo $i; sleep 0.01; done; echo end", false),
			conf("dies", "until test -e /vol/go; do sleep 0.01; done; echo bye; exit 42", false),
			conf("terminal", "read line; echo got $line", true),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), victimEnv+"="+string(order))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var ids []string
	for sc := bufio.NewScanner(out); sc.Scan() && sc.Text() != "ready"; {
		id, ok := strings.CutPrefix(sc.Text(), "id ")
		if !ok {
			t.Fatal(sc.Text())
		}
		ids = append(ids, id)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()

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
	if st := f.wait(ids[1]); st.ExitCode != 42 || st.Reason != "Error" {
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
