package server

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/agent/volumes"
)

// ownMetrics answers the agent's counters, with the states of its pods.
func (s *Server) ownMetrics(w http.ResponseWriter, r *http.Request) {
	s.cfg.Metrics.Handler(podStates{s}).ServeHTTP(w, r)
}

// podStates counts pods and containers at each request.
type podStates struct{ s *Server }

var (
	runningPods = prometheus.NewDesc("kubelet_running_pods", "Number of pods that have a running pod sandbox", nil, nil)
	runningCont = prometheus.NewDesc("kubelet_running_containers", "Number of containers currently running", []string{"container_state"}, nil)
	desiredPods = prometheus.NewDesc("kubelet_desired_pods", "The number of pods the kubelet is being instructed to run. static is true if the pod is not from the apiserver.", []string{"static"}, nil)
	nodeName    = prometheus.NewDesc("kubelet_node_name", "The node's name. The count is always 1.", []string{"node"}, nil)
	volumeCount = prometheus.NewDesc("volume_manager_total_volumes", "Number of volumes in Volume Manager", []string{"plugin_name", "state"}, nil)
	claimStats  = []*prometheus.Desc{
		claimStat("capacity_bytes", "Capacity in bytes of the volume"), claimStat("available_bytes", "Number of available bytes in the volume"), claimStat("used_bytes", "Number of used bytes in the volume"),
		claimStat("inodes", "Maximum number of inodes in the volume"), claimStat("inodes_free", "Number of free inodes in the volume"), claimStat("inodes_used", "Number of used inodes in the volume"),
	}
)

func claimStat(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("kubelet_volume_stats_"+name, help, []string{"namespace", "persistentvolumeclaim"}, nil)
}

// Describe implements prometheus.Collector.
func (podStates) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range append([]*prometheus.Desc{runningPods, runningCont, desiredPods, nodeName, volumeCount}, claimStats...) {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (p podStates) Collect(ch chan<- prometheus.Metric) {
	running := 0
	states, desired := map[string]int{"created": 0, "running": 0, "exited": 0}, map[string]int{"": 0, "true": 0}
	for _, pod := range p.s.cfg.Pods() {
		if pod.Status.Phase == corev1.PodRunning {
			running++
		}
		static := ""
		if podspec.IsStatic(pod) {
			static = "true"
		}
		desired[static]++
		for _, st := range pod.Status.ContainerStatuses {
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
	gauge := func(d *prometheus.Desc, n int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), labels...)
	}
	gauge(runningPods, running)
	for k, n := range states {
		gauge(runningCont, n, k)
	}
	for k, n := range desired {
		gauge(desiredPods, n, k)
	}
	gauge(nodeName, 1, p.s.cfg.NodeName)
	p.volumes(ch)
}

// volumes counts those that pods need and those that are ready, and measures claims.
func (p podStates) volumes(ch chan<- prometheus.Metric) {
	if p.s.cfg.Volumes == nil {
		return
	}
	type key struct{ plugin, state string }
	counts, claims := map[key]int{}, map[stats.PVCReference]bool{}
	for _, pod := range p.s.cfg.Pods() {
		ready := p.s.cfg.Volumes(string(pod.UID))
		for i := range pod.Spec.Volumes {
			v := &pod.Spec.Volumes[i]
			plugin := volumes.Plugin(v)
			if pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed {
				counts[key{plugin, "desired_state_of_world"}]++
			}
			if _, ok := ready[v.Name]; ok {
				counts[key{plugin, "actual_state_of_world"}]++
			}
		}
		for _, v := range p.s.cfg.Usage.Claims(pod, metav1.NewTime(p.s.cfg.Clock.Now())) {
			if claims[*v.PVCRef] {
				continue // several pods use it
			}
			claims[*v.PVCRef] = true
			for i, n := range []*uint64{v.CapacityBytes, v.AvailableBytes, v.UsedBytes, v.Inodes, v.InodesFree, v.InodesUsed} {
				ch <- prometheus.MustNewConstMetric(claimStats[i], prometheus.GaugeValue, float64(*n), v.PVCRef.Namespace, v.PVCRef.Name)
			}
		}
	}
	for k, n := range counts {
		ch <- prometheus.MustNewConstMetric(volumeCount, prometheus.GaugeValue, float64(n), k.plugin, k.state)
	}
}
