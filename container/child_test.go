package container

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// orderEnv makes the test binary a runtime of its own, which is to be killed.
const orderEnv = "KNARR_CONTAINER_TEST_ORDER"

// order is what such a runtime does.
type order struct {
	Do      string // victim, or worker
	Config  Config
	Handler string
	Pod     message[*runtimeapi.PodSandboxConfig]
	Make    []message[*runtimeapi.ContainerConfig]
	// KillAt is the step after which the worker kills itself; Steps has it print all.
	KillAt string
	Steps  bool
}

func TestMain(m *testing.M) {
	text := os.Getenv(orderEnv)
	switch {
	case os.Getenv(keyringEnv) != "":
		printKeyring()
	case text != "": // a runtime
	case os.Getenv(reapedEnv) != "":
		os.Exit(m.Run())
	default:
		code, err := reaper()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		os.Exit(code)
	}
	var o order
	err := json.Unmarshal([]byte(text), &o)
	if err == nil {
		err = map[string]func(context.Context, *order) error{"victim": victim, "worker": worker}[o.Do](context.Background(), &o)
	}
	fmt.Println("error", err)
	os.Exit(1)
}

// victim runs the containers of the order, prints their IDs and waits to be killed.
func victim(ctx context.Context, o *order) error {
	s, err := New(ctx, o.Config)
	if err != nil {
		return err
	}
	pod, err := s.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: o.Pod.m, RuntimeHandler: o.Handler})
	if err != nil {
		return err
	}
	for _, m := range o.Make {
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

// worker says "go" and then makes, stops and removes pods, one after another.
func worker(ctx context.Context, o *order) error {
	o.Config.reached = func(step string) {
		if o.Steps {
			fmt.Println("step", step)
		}
		if step == o.KillAt {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
	}
	s, err := New(ctx, o.Config)
	if err != nil {
		return err
	}
	fmt.Println("go")
	for attempt := uint32(1); ; attempt++ {
		o.Pod.m.Metadata.Attempt = attempt
		if err := life(ctx, s, o); err != nil {
			return err
		}
		fmt.Println("done")
	}
}

// life is that of one pod.
func life(ctx context.Context, s *Server, o *order) error {
	pod, err := s.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: o.Pod.m, RuntimeHandler: o.Handler})
	if err != nil {
		return err
	}
	for _, m := range o.Make {
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
	if _, err := s.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod.PodSandboxId}); err != nil {
		return err
	}
	_, err = s.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod.PodSandboxId})
	return err
}

// child is a runtime that carries out an order.
type child struct {
	testing.TB
	cmd *exec.Cmd
	out *bufio.Scanner
}

func (f *fixture) child(o order) *child {
	f.Helper()
	o.Config, o.Handler = f.cfg, f.handler
	o.Config.Log = nil
	text, err := json.Marshal(o)
	if err != nil {
		f.Fatal(err)
	}
	c := &child{TB: f.TB, cmd: exec.Command(os.Args[0])}
	c.cmd.Env = append(os.Environ(), orderEnv+"="+string(text))
	c.cmd.Stderr = os.Stderr
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		f.Fatal(err)
	}
	c.out = bufio.NewScanner(out)
	if err := c.cmd.Start(); err != nil {
		f.Fatal(err)
	}
	return c
}

// until reads what the child says until it says last, and returns what it said of each
// kind before. A child that has ended says nothing.
func (c *child) until(last, kind string) (said []string) {
	c.Helper()
	for c.out.Scan() && c.out.Text() != last {
		switch rest, ok := strings.CutPrefix(c.out.Text(), kind+" "); {
		case ok:
			said = append(said, rest)
		case strings.HasPrefix(c.out.Text(), "error "):
			c.Fatal(c.out.Text())
		}
	}
	return said
}

// kill ends the child and waits for its end.
func (c *child) kill() {
	c.Helper()
	if err := c.cmd.Process.Kill(); err != nil && err != os.ErrProcessDone {
		c.Fatal(err)
	}
	_ = c.cmd.Wait() // killed
}
