package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	clocktesting "k8s.io/utils/clock/testing"

	"knarr.dev/knarr/agent/critest"
)

// Log collectors find the logs of all containers in one folder, as with kubelets.
func TestLogsAreLinked(t *testing.T) {
	links := t.TempDir()
	clk := clocktesting.NewFakeClock(time.Now())
	w := newWorld(t, withClock(clk), func(c *Config) { c.LogLinks = links })
	stale, foreign := filepath.Join(links, "old_default_c-1.log"), filepath.Join(links, "another_default_c-2.log")
	for link, target := range map[string]string{stale: filepath.Join(w.cfg.LogRoot, "default_old_uid-old/c/0.log"), foreign: "/nowhere/else.log"} {
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
	}
	w.run()
	w.pod("p", nil)
	targets := func() (out []string) {
		entries, err := os.ReadDir(links)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			target, err := os.Readlink(filepath.Join(links, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			if name, _, _ := strings.Cut(e.Name(), "-"); target != "/nowhere/else.log" && name != "p_default_c" {
				t.Errorf("a link named %s", e.Name())
			}
			out = append(out, strings.TrimPrefix(target, w.cfg.LogRoot+"/default_p_uid-p/"))
		}
		return out
	}
	for restart := range 3 {
		w.wait("p", "running", func(p *corev1.Pod) bool {
			return running(p) && p.Status.ContainerStatuses[0].RestartCount == int32(restart) && p.Status.ContainerStatuses[0].State.Running != nil
		})
		if got := strings.Join(targets(), " "); !strings.Contains(got, fmt.Sprintf("c/%d.log", restart)) || !strings.Contains(got, "/nowhere/else.log") {
			t.Errorf("after %d restarts the links lead to %s", restart, got)
		}
		switch restart {
		case 0:
			w.runtime("somebody who follows it", (*critest.Runtime).Followed)
			w.cri.ExitAt("c", 1, clk.Now())
		case 1:
			w.cri.ExitAt("c", 1, clk.Now())
			w.wait("p", "held", waiting("CrashLoopBackOff"))
			clk.Step(10 * time.Second)
		}
	}
	w.delete("p", nil)
	w.gone("p")
	w.runtime("nothing", (*critest.Runtime).Empty)
	w.stop()
	if got := targets(); len(got) != 1 || got[0] != "/nowhere/else.log" {
		t.Errorf("left are links to %v", got)
	}
}
