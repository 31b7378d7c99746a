package agent

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	clocktesting "k8s.io/utils/clock/testing"

	"knarr.dev/knarr/agent/critest"
)

// The node's own longest back-off bounds the first one as well.
func TestTheLongestBackOffIsTheNodes(t *testing.T) {
	for longest, delays := range map[time.Duration][]time.Duration{
		15 * time.Second: {10 * time.Second, 15 * time.Second, 15 * time.Second},
		2 * time.Second:  {2 * time.Second, 2 * time.Second},
	} {
		clk := clocktesting.NewFakeClock(time.Now())
		w := newWorld(t, withClock(clk), func(c *Config) { c.MaxRestart = longest })
		w.run()
		w.pod("p", nil)
		w.wait("p", "running", running)
		w.runtime("somebody who follows it: the clock, which stands, would not let the agent look once more", (*critest.Runtime).Followed)
		w.cri.ExitAt("c", 1, clk.Now())
		began := func(n int32) {
			t.Helper()
			w.wait("p", fmt.Sprintf("restarted %d times", n), func(p *corev1.Pod) bool {
				return p != nil && p.Status.ContainerStatuses[0].RestartCount == n && p.Status.ContainerStatuses[0].State.Running != nil
			})
		}
		began(1)
		for i, delay := range delays {
			w.cri.ExitAt("c", 1, clk.Now())
			w.wait("p", "held for "+delay.String(), func(p *corev1.Pod) bool {
				return waiting("CrashLoopBackOff")(p) && strings.HasPrefix(p.Status.ContainerStatuses[0].State.Waiting.Message, "back-off "+delay.String()+" ")
			})
			clk.Step(delay)
			began(int32(i + 2))
		}
		w.stop()
	}
}
