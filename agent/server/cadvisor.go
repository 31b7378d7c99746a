package server

import (
	"context"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/agent/view"
)

// objectLabels say whose a value is. The agent writes them itself: runtimes differ in them.
var objectLabels = []string{"container", "id", "image", "name", "namespace", "pod"}

func objectOf(container, id, image, name, namespace, pod string) []string {
	return []string{"container", container, "id", id, "image", image, "name", name, "namespace", namespace, "pod", pod}
}

// runtimeMetrics adds what the runtime counts under cAdvisor's names and e does not have: the
// statistics, of which the others are made, are more exact. Not every runtime counts.
func (s *Server) runtimeMetrics(ctx context.Context, e *exposition, pods map[string]*corev1.Pod) {
	if s.countless.Load() {
		return
	}
	described, err := s.cfg.CRI.Runtime.ListMetricDescriptors(ctx, &runtimeapi.ListMetricDescriptorsRequest{})
	var measured *runtimeapi.ListPodSandboxMetricsResponse
	if err == nil {
		measured, err = s.cfg.CRI.Runtime.ListPodSandboxMetrics(ctx, &runtimeapi.ListPodSandboxMetricsRequest{})
	}
	if err != nil {
		if status.Code(err) == codes.Unimplemented {
			s.countless.Store(true)
			return
		}
		s.cfg.Log.Warn("the runtime's metrics are missing in /metrics/cadvisor", "error", err)
		return
	}
	known := map[string]*runtimeapi.MetricDescriptor{}
	for _, d := range described.Descriptors {
		if e.named[d.Name] == nil {
			known[d.Name] = d
		}
	}
	add := func(list []*runtimeapi.Metric, object []string) {
		for _, m := range list {
			d := known[m.Name]
			if d == nil {
				continue
			}
			kind, at, labels, v := "counter", time.Time{}, slices.Clone(object), float64(m.Value.GetValue())
			if m.MetricType == runtimeapi.MetricType_GAUGE {
				kind = "gauge"
			}
			if m.Timestamp != 0 {
				at = time.Unix(0, m.Timestamp)
			}
			for i, key := range d.LabelKeys[:min(len(d.LabelKeys), len(m.LabelValues))] {
				if !slices.Contains(objectLabels, key) {
					labels = append(labels, key, m.LabelValues[i])
				}
			}
			e.add(m.Name, kind, d.Help, &v, at, labels...)
		}
	}
	type box struct {
		pod  *corev1.Pod
		view *view.Pod
	}
	boxes := map[string]box{}
	for uid, p := range pods {
		if _, v, ok := s.cfg.Find(p.Namespace, p.Name, uid); ok {
			for _, b := range v.Sandboxes {
				boxes[b.Id] = box{p, v}
			}
		}
	}
	for _, m := range measured.PodMetrics {
		b, ok := boxes[m.PodSandboxId]
		if !ok {
			continue
		}
		group := podspec.CgroupParent(s.cfg.CgroupRoot, b.pod)
		add(m.Metrics, objectOf("", group, "", "", b.pod.Namespace, b.pod.Name))
		for _, c := range m.ContainerMetrics {
			if k := b.view.ByID(c.ContainerId); k != nil {
				name := k.Metadata.GetName()
				image, id := shown(b.pod, name)
				add(c.Metrics, objectOf(name, group+"/"+id, image, id, b.pod.Namespace, b.pod.Name))
			}
		}
	}
}
