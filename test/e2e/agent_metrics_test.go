package e2e

import (
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
)

// monitored: what the rules and dashboards of monitoring read of a node is there, with real
// figures.
func monitored(t *testing.T, c *cluster, healthz int) {

	c.apply(`
apiVersion: v1
kind: Pod
metadata: {name: busy}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: REGISTRY/tools:1
    command: [sh, -c, "while :; do :; done"]
    resources: {limits: {cpu: 50m, memory: 32Mi}}
`)
	c.awaitPod("busy", "ready", ready)
	of := `{[^}]*container="c"[^}]*image="[^"]+"[^}]*pod="busy"[^}]*}`
	for path, patterns := range map[string][]string{
		"/metrics/cadvisor": {
			`container_cpu_cfs_throttled_periods_total` + of + ` [1-9]`, `container_cpu_cfs_periods_total` + of + ` [1-9]`, `container_memory_cache` + of, `container_oom_events_total` + of + ` 0`,
			`container_memory_max_usage_bytes` + of + ` [1-9]`, `container_threads` + of + ` 1`, `container_processes` + of + ` 1`,
			`container_network_receive_packets_total{[^}]*namespace="default",pod="busy",interface="[^"]+"} \d`, `container_network_transmit_packets_dropped_total{[^}]*pod="busy"`,
		},
		"/metrics/slis": {`kubernetes_healthcheck{name="syncloop",type="healthz"} 1`},
		"/metrics":      {`kubelet_pod_start_sli_duration_seconds_count [1-9]`, `kubelet_certificate_manager_server_ttl_seconds [1-9]`, `volume_manager_total_volumes{plugin_name="kubernetes.io/projected",state="actual_state_of_world"} [1-9]`},
	} {
		c.eventually(path, func() error {
			text := c.askNode(path)
			for _, p := range patterns {
				if !regexp.MustCompile("(?m)^" + p).MatchString(text) {
					return fmt.Errorf("nothing matches %s in\n%s", p, text)
				}
			}
			return nil
		})
	}
	events := c.must("get", "events", "--field-selector=involvedObject.kind=Node", "-o", "jsonpath={.items[*].reason}")
	for _, reason := range []string{"Starting", "NodeReady", "NodeHasSufficientMemory", "NodeHasNoDiskPressure", "NodeHasSufficientPID"} {
		if !strings.Contains(events, reason) {
			t.Errorf("no event %s of the node: %s", reason, events)
		}
	}
	c.must("delete", "pod", "busy")
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/healthz", healthz))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK || string(text) != "ok" {
		t.Errorf("the health checks answer %s %q, %v", resp.Status, text, err)
	}
}
