package container

import (
	"context"
	"os"
	"slices"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// crashOrder is a pod that goes through every step, its own first process included.
func crashOrder(f *fixture) order {
	conf := f.podConfig(func(c *runtimeapi.PodSandboxConfig) {
		if f.handler != "runsc" { // which shares no processes
			c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		}
	})
	return order{Do: "worker", Pod: message[*runtimeapi.PodSandboxConfig]{conf}, Make: []message[*runtimeapi.ContainerConfig]{{m: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: f.image}, Command: []string{"sleep", "1000"}, LogPath: "c.log",
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: conf.Linux.SecurityContext.NamespaceOptions}},
	}}}}
}

// A runtime that is killed after any step of a pod's life is followed by one that knows
// all that was left, removes it, leaks nothing, and can make the same pod.
func TestKilledAfterEachStep(t *testing.T) { killedAfterEachStep(t, newFixture(t)) }

// handlerSteps are those between which a handler is at work.
var handlerSteps = []string{
	"container: output opened", "container: process started", "container: descriptors held", "container: processes killed",
	"container: ended", "container: forgotten by its executor", "container: group removed",
}

func TestHandlerKilledAfterEachStep(t *testing.T) {
	eachHandler(t, func(t *testing.T, f *fixture, _ string) { killedAfterEachStep(t, f) })
}

func killedAfterEachStep(t *testing.T, f *fixture) {
	o := crashOrder(f)
	f.hand(func() {
		c := f.child(order{Do: o.Do, Pod: o.Pod, Make: o.Make, Steps: true})
		c.until("go", "")
		steps := c.until("done", "step")
		c.kill()
		slices.Sort(steps)
		steps = slices.Compact(steps)
		if len(steps) < 25 {
			t.Fatalf("only these steps are known: %q", steps)
		}
		if f.handler != "" { // what a pod is does not depend on its handler
			steps = slices.DeleteFunc(steps, func(s string) bool { return !slices.Contains(handlerSteps, s) })
			if len(steps) != len(handlerSteps) {
				t.Fatalf("of the steps %q only %q are left", handlerSteps, steps)
			}
		}
		t.Logf("%d steps", len(steps))
		for _, step := range steps {
			o := o
			o.KillAt = step
			killed := f.child(o)
			killed.until("", "")
			killed.kill()
			f.inherit("killed after " + step)
			if t.Failed() {
				return
			}
			if f.handler != "" {
				continue // it would be slow
			}
			again := f.child(order{Do: o.Do, Pod: o.Pod, Make: o.Make})
			again.until("done", "")
			again.kill()
			f.inherit("after making the pod again, killed before after " + step)
			if t.Failed() {
				return
			}
		}
	})
}

// The same by time instead of by steps: a sweep over two lives of a pod.
func TestKilledAtAnyMoment(t *testing.T) { killedAtAnyMoment(t, newFixture(t), 20, 3*time.Millisecond) }

func TestHandlerKilledAtAnyMoment(t *testing.T) {
	eachHandler(t, func(t *testing.T, f *fixture, handler string) {
		pace := 20 * time.Millisecond
		if handler == "runsc" {
			pace *= 3
		}
		killedAtAnyMoment(t, f, 6, pace)
	})
}

func killedAtAnyMoment(t *testing.T, f *fixture, moments int, pace time.Duration) {
	f.hand(func() {
		for n := range moments {
			c := f.child(crashOrder(f))
			c.until("go", "")
			<-time.After(time.Duration(n) * pace) // the moment itself is what is tested
			c.kill()
			f.inherit((time.Duration(n) * pace).String())
			if t.Failed() {
				return
			}
		}
	})
}

// hand leaves the fixture's folders to children while use runs.
func (f *fixture) hand(use func()) {
	f.Helper()
	if err := f.Close(); err != nil {
		f.Fatal(err)
	}
	defer func() {
		var err error
		if f.Server, err = New(context.Background(), f.cfg); err != nil {
			f.Fatal(err)
		}
	}()
	use()
}

// inherit makes a runtime after a child that was killed, has it remove all pods, and
// looks for what is left then.
func (f *fixture) inherit(when string) {
	f.Helper()
	s, err := New(context.Background(), f.cfg)
	if err != nil {
		f.Errorf("%s: %v", when, err)
		return
	}
	defer s.Close()
	for _, c := range s.containerItems(nil) {
		if s.containers[c.Id].Unfinished {
			f.Errorf("%s: a container is half made", when)
		}
	}
	for _, p := range s.podItems(nil) {
		if _, err := s.RemovePodSandbox(f.ctx(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.Id}); err != nil {
			f.Errorf("%s: %v", when, err)
		}
	}
	for _, dir := range []string{"pods", "containers"} {
		f.empty(when, f.cfg.Root+"/"+dir)
	}
	for _, dir := range []string{"ns", "c", "oci/x", "oci/" + f.handler} {
		f.empty(when, f.cfg.Run+"/"+dir)
	}
	if keys, err := s.holder.List(); err != nil || len(keys) > 0 {
		f.Errorf("%s: the holder keeps %v (%v)", when, keys, err)
	}
	if g := s.layout.Group(s.parentGroup("kubepods")); g.Exists() {
		f.Errorf("%s: control group %s is left", when, g.Path())
	}
}

func (f *fixture) empty(when, dir string) {
	f.Helper()
	left, err := os.ReadDir(dir)
	if os.IsNotExist(err) || dir == f.cfg.Run+"/oci/" {
		return
	}
	left = slices.DeleteFunc(left, func(e os.DirEntry) bool { return e.Name() == "null-netns" }) // of all of runsc's sandboxes
	if err != nil || len(left) > 0 {
		f.Errorf("%s: in %s are left %v (%v)", when, dir, left, err)
	}
}
