package container

import (
	"bufio"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// workerEnv makes the test binary a runtime that makes and removes pods until it is killed.
const workerEnv = "KNARR_CONTAINER_TEST_WORKER"

// worker says "go" and then makes, stops and removes pods, one after another.
func worker(text string) error {
	var order victimOrder
	if err := json.Unmarshal([]byte(text), &order); err != nil {
		return err
	}
	ctx := context.Background()
	s, err := New(ctx, order.Config)
	if err != nil {
		return err
	}
	if _, err := os.Stdout.WriteString("go\n"); err != nil {
		return err
	}
	for attempt := uint32(1); ; attempt++ {
		order.Pod.m.Metadata.Attempt = attempt
		pod, err := s.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: order.Pod.m})
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
			if _, err := s.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c.ContainerId}); err != nil {
				return err
			}
			if _, err := s.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: c.ContainerId}); err != nil {
				return err
			}
		}
		if _, err := s.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod.PodSandboxId}); err != nil {
			return err
		}
	}
}

// A runtime that is killed at any moment of a pod's life is followed by one that
// knows everything that was left, can remove all of it, and leaks nothing.
// The moments are a sweep over two lives of a pod, not points in the code.
func TestKilledAtAnyMoment(t *testing.T) {
	f := newFixture(t)
	cfg := f.cfg
	cfg.Log = nil
	conf := f.podConfig(func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	})
	order, err := json.Marshal(victimOrder{Config: cfg, Pod: message[*runtimeapi.PodSandboxConfig]{conf}, Make: []message[*runtimeapi.ContainerConfig]{{&runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: f.image}, Command: []string{"sleep", "1000"}, LogPath: "c.log",
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	for moment := time.Duration(0); moment < 60*time.Millisecond; moment += 3 * time.Millisecond {
		if err := f.Close(); err != nil { // the worker takes the folders over
			t.Fatal(err)
		}
		killAfter(t, string(order), moment)
		if f.Server, err = New(context.Background(), f.cfg); err != nil {
			t.Fatalf("killed after %v: %v", moment, err)
		}
		for _, p := range f.podItems(nil) {
			if _, err := f.RemovePodSandbox(f.ctx(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.Id}); err != nil {
				t.Errorf("killed after %v: %v", moment, err)
			}
		}
		for _, dir := range []string{f.cfg.Root + "/pods", f.cfg.Root + "/containers", f.cfg.Run + "/ns", f.cfg.Run + "/c"} {
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("killed after %v: in %s are left %v (%v)", moment, dir, left, err)
			}
		}
		if keys, err := f.holder.List(); err != nil || len(keys) > 0 {
			t.Errorf("killed after %v: the holder keeps %v (%v)", moment, keys, err)
		}
		if g := f.layout.Group(f.parentGroup("kubepods")); g.Exists() {
			t.Errorf("killed after %v: control group %s is left", moment, g.Path())
		}
		if t.Failed() {
			return
		}
	}
}

func killAfter(t *testing.T, order string, moment time.Duration) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), workerEnv+"="+order)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "go\n" {
		t.Fatalf("the worker said %q (%v)", strings.TrimSpace(line), err)
	}
	<-time.After(moment) // the moment itself is what is tested
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
}
