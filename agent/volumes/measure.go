package volumes

import (
	"context"
	"maps"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Plugin names what makes a volume, as metrics do.
func Plugin(v *corev1.Volume) string {
	kind := "unsupported"
	switch {
	case v.EmptyDir != nil:
		kind = "empty-dir"
	case v.HostPath != nil:
		kind = "host-path"
	case v.ConfigMap != nil:
		kind = "configmap"
	case v.Secret != nil:
		kind = "secret"
	case v.DownwardAPI != nil:
		kind = "downward-api"
	case v.Projected != nil:
		kind = "projected"
	case v.PersistentVolumeClaim != nil:
		kind = "persistent-claim"
	case v.Image != nil:
		kind = "image"
	}
	return "kubernetes.io/" + kind
}

// made are the host paths of the volumes that are ready, by pod and name.
type made struct {
	mu   sync.Mutex
	pods map[string]map[string]string
}

func (m *made) put(uid, name, path string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pods == nil {
		m.pods = map[string]map[string]string{}
	}
	if m.pods[uid] == nil {
		m.pods[uid] = map[string]string{}
	}
	m.pods[uid][name] = path
}

func (m *made) forget(uid string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.pods, uid)
}

// Ready are the host paths of those of a pod's volumes that are ready, by name.
func (m *Manager) Ready(uid string) map[string]string {
	m.made.mu.Lock()
	defer m.made.mu.Unlock()
	return maps.Clone(m.made.pods[uid])
}

// prepare makes a volume or brings it up to date, and notes how that went.
func (m *Manager) prepare(ctx context.Context, pod *corev1.Pod, v *corev1.Volume) (string, time.Time, error) {
	began := m.cfg.Clock.Now()
	path, next, err := m.make(ctx, pod, v)
	if err == nil {
		m.made.put(string(pod.UID), v.Name, path)
	}
	if m.cfg.Observe != nil {
		m.cfg.Observe(Plugin(v), m.cfg.Clock.Since(began), err)
	}
	return path, next, err
}
