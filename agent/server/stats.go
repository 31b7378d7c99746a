package server

import (
	"net/http"
	"strconv"

	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// WindowHeader tells over which time the rates of a summary were taken; kubelets do
// not send it.
const WindowHeader = "Knarr-Stats-Window"

// summary answers the statistics of the node and its pods, with
// ?only_cpu_and_memory=true nothing but these two.
func (s *Server) summary(w http.ResponseWriter, r *http.Request) {
	reading, err := s.cfg.Usage.Read(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set(WindowHeader, reading.Window.String())
	if only, err := strconv.ParseBool(r.URL.Query().Get("only_cpu_and_memory")); err == nil && only {
		writeJSON(w, cpuAndMemory(&reading.Summary))
		return
	}
	all, err := s.cfg.Usage.ReadAll(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	writeJSON(w, all)
}

// cpuAndMemory leaves all else out.
func cpuAndMemory(in *stats.Summary) *stats.Summary {
	out := &stats.Summary{Node: stats.NodeStats{NodeName: in.Node.NodeName, StartTime: in.Node.StartTime, CPU: in.Node.CPU, Memory: in.Node.Memory, SystemContainers: in.Node.SystemContainers}, Pods: make([]stats.PodStats, 0, len(in.Pods))}
	for i := range in.Pods {
		p := &in.Pods[i]
		ps := stats.PodStats{PodRef: p.PodRef, StartTime: p.StartTime, CPU: p.CPU, Memory: p.Memory, Containers: make([]stats.ContainerStats, 0, len(p.Containers))}
		for j := range p.Containers {
			c := &p.Containers[j]
			ps.Containers = append(ps.Containers, stats.ContainerStats{Name: c.Name, StartTime: c.StartTime, CPU: c.CPU, Memory: c.Memory})
		}
		out.Pods = append(out.Pods, ps)
	}
	return out
}
