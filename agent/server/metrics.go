package server

import (
	"bytes"
	"fmt"
	"net/http"
	"runtime"

	corev1 "k8s.io/api/core/v1"
)

const textFormat = "text/plain; version=0.0.4; charset=utf-8"

// resourceMetrics answers what metrics-server reads.
func (s *Server) resourceMetrics(w http.ResponseWriter, r *http.Request) {
	sum, err := s.collect(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	var ccpu, cmem, pcpu, pmem, ncpu, nmem bytes.Buffer
	if c := sum.Node.CPU; c != nil && c.UsageCoreNanoSeconds != nil {
		fmt.Fprintf(&ncpu, "node_cpu_usage_seconds_total %g %d\n", float64(*c.UsageCoreNanoSeconds)/1e9, c.Time.UnixMilli())
	}
	if m := sum.Node.Memory; m != nil && m.WorkingSetBytes != nil {
		fmt.Fprintf(&nmem, "node_memory_working_set_bytes %d %d\n", *m.WorkingSetBytes, m.Time.UnixMilli())
	}
	for _, p := range sum.Pods {
		labels := fmt.Sprintf("namespace=%q,pod=%q", p.PodRef.Namespace, p.PodRef.Name)
		if p.CPU != nil && p.CPU.UsageCoreNanoSeconds != nil {
			fmt.Fprintf(&pcpu, "pod_cpu_usage_seconds_total{%s} %g %d\n", labels, float64(*p.CPU.UsageCoreNanoSeconds)/1e9, p.CPU.Time.UnixMilli())
		}
		if p.Memory != nil && p.Memory.WorkingSetBytes != nil {
			fmt.Fprintf(&pmem, "pod_memory_working_set_bytes{%s} %d %d\n", labels, *p.Memory.WorkingSetBytes, p.Memory.Time.UnixMilli())
		}
		for _, c := range p.Containers {
			cl := fmt.Sprintf("container=%q,%s", c.Name, labels)
			if c.CPU != nil && c.CPU.UsageCoreNanoSeconds != nil {
				fmt.Fprintf(&ccpu, "container_cpu_usage_seconds_total{%s} %g %d\n", cl, float64(*c.CPU.UsageCoreNanoSeconds)/1e9, c.CPU.Time.UnixMilli())
			}
			if c.Memory != nil && c.Memory.WorkingSetBytes != nil {
				fmt.Fprintf(&cmem, "container_memory_working_set_bytes{%s} %d %d\n", cl, *c.Memory.WorkingSetBytes, c.Memory.Time.UnixMilli())
			}
		}
	}
	w.Header().Set("Content-Type", textFormat)
	for _, m := range []struct {
		name, help, kind string
		rows             *bytes.Buffer
	}{
		{"container_cpu_usage_seconds_total", "Cumulative cpu time consumed by the container in core-seconds", "counter", &ccpu},
		{"container_memory_working_set_bytes", "Current working set of the container in bytes", "gauge", &cmem},
		{"node_cpu_usage_seconds_total", "Cumulative cpu time consumed by the node in core-seconds", "counter", &ncpu},
		{"node_memory_working_set_bytes", "Current working set of the node in bytes", "gauge", &nmem},
		{"pod_cpu_usage_seconds_total", "Cumulative cpu time consumed by the pod in core-seconds", "counter", &pcpu},
		{"pod_memory_working_set_bytes", "Current working set of the pod in bytes", "gauge", &pmem},
	} {
		if m.rows.Len() > 0 {
			fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n%s", m.name, m.help, m.name, m.kind, m.rows)
		}
	}
	fmt.Fprint(w, "# HELP resource_scrape_error 1 if there was an error while getting container metrics, 0 otherwise\n# TYPE resource_scrape_error gauge\nresource_scrape_error 0\n")
}

// metrics answers counts of the agent itself.
func (s *Server) metrics(w http.ResponseWriter, _ *http.Request) {
	var runningPods int
	states := map[string]int{"created": 0, "running": 0, "exited": 0}
	for _, p := range s.cfg.Pods() {
		if p.Status.Phase == corev1.PodRunning {
			runningPods++
		}
		for _, st := range p.Status.ContainerStatuses {
			switch {
			case st.State.Running != nil:
				states["running"]++
			case st.State.Terminated != nil:
				states["exited"]++
			default:
				states["created"]++
			}
		}
	}
	w.Header().Set("Content-Type", textFormat)
	fmt.Fprintf(w, "# HELP kubelet_running_pods Number of pods that have a running pod sandbox\n# TYPE kubelet_running_pods gauge\nkubelet_running_pods %d\n", runningPods)
	fmt.Fprint(w, "# HELP kubelet_running_containers Number of containers by state\n# TYPE kubelet_running_containers gauge\n")
	for _, k := range []string{"created", "exited", "running"} {
		fmt.Fprintf(w, "kubelet_running_containers{container_state=%q} %d\n", k, states[k])
	}
	fmt.Fprintf(w, "# HELP kubelet_node_name The node's name. The count is always 1.\n# TYPE kubelet_node_name gauge\nkubelet_node_name{node=%q} 1\n", s.cfg.NodeName)
	fmt.Fprintf(w, "# HELP go_goroutines Number of goroutines that currently exist.\n# TYPE go_goroutines gauge\ngo_goroutines %d\n", runtime.NumGoroutine())
}
