package agent

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"k8s.io/utils/cpuset"

	"knarr.dev/knarr/agent/cpus"
	"knarr.dev/knarr/agent/shutdown"
	"knarr.dev/knarr/agent/topology"
)

func TestSettingsTellWhatIsInForce(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.MaxRestart, c.SwapBehavior = 20*time.Second, "LimitedSwap"
		c.ShutdownPeriods = shutdown.Periods(time.Minute, 10*time.Second)
		c.Exclusive = Exclusive{CPUPolicy: "static", CPUOptions: cpus.Options{FullCores: true}, ReservedCPUs: cpuset.New(0), Sys: eight(t), Topology: topology.Config{Policy: "restricted"}}
	})
	a, err := New(w.cfg)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(a.settings())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"maxContainerRestartPeriod":"20s"`, `"swapBehavior":"LimitedSwap"`, `"cpuManagerPolicy":"static"`, `"cpuManagerPolicyOptions":{"full-pcpus-only":"true"}`,
		`"reservedSystemCPUs":"0"`, `"memoryManagerPolicy":"None"`, `"topologyManagerPolicy":"restricted"`, `"topologyManagerScope":"container"`, `"idsPerPod":65536`, `"imagePullCredentialsVerificationPolicy":"NeverVerifyPreloadedImages"`,
		`"shutdownGracePeriodByPodPriority":[{"priority":0,"shutdownGracePeriodSeconds":50},{"priority":2000000000,"shutdownGracePeriodSeconds":10}]`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%s is missing in %s", want, b)
		}
	}
}
