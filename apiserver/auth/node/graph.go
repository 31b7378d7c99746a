package node

import (
	"sync"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/registry"
	"knarr.dev/knarr/apiserver/watchcache"
)

// Cached is the Graph of a registry's caches. It counts by nodes what their pods
// name. Events are taken over when somebody asks, so that it is never behind what
// a node has read, and costs nothing while nobody asks.
type Cached struct {
	// Registry has the objects; it must be set before the first question.
	Registry func() *registry.Registry

	mu       sync.Mutex
	pods     *watchcache.Watcher
	volumes  *watchcache.Watcher
	byNode   map[ref]map[string]int // node -> how many of its pods name the object
	ofVolume map[ref]map[ref]int    // secret -> claims whose volumes need it
}

// ref is an object that pods name.
type ref struct{ resource, namespace, name string }

var (
	podsGVR        = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	volumesGVR     = schema.GroupVersionResource{Version: "v1", Resource: "persistentvolumes"}
	attachmentsGVR = schema.GroupVersionResource{Group: "storage.k8s.io", Version: "v1", Resource: "volumeattachments"}
)

func (c *Cached) get(gvr schema.GroupVersionResource, key string) kind.Object {
	res := c.Registry().Resource(gvr)
	if res == nil {
		return nil
	}
	if it := res.Cache.Get(key); it != nil {
		return it.Object
	}
	return nil
}

// Pod implements Graph.
func (c *Cached) Pod(namespace, name string) *corev1.Pod {
	p, _ := c.get(podsGVR, namespace+"/"+name).(*corev1.Pod)
	return p
}

// Attachment implements Graph.
func (c *Cached) Attachment(name string) *storagev1.VolumeAttachment {
	v, _ := c.get(attachmentsGVR, name).(*storagev1.VolumeAttachment)
	return v
}

// Names implements Graph.
func (c *Cached) Names(node, resource, namespace, name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.catchUp()
	if resource == "persistentvolumes" {
		v, ok := c.get(volumesGVR, name).(*corev1.PersistentVolume)
		return ok && v.Spec.ClaimRef != nil && c.byNode[claim(v.Spec.ClaimRef)][node] > 0
	}
	r := ref{resource, namespace, name}
	if c.byNode[r][node] > 0 {
		return true
	}
	for pvc := range c.ofVolume[r] {
		if c.byNode[pvc][node] > 0 {
			return true
		}
	}
	return false
}

func claim(r *corev1.ObjectReference) ref {
	return ref{"persistentvolumeclaims", r.Namespace, r.Name}
}

// catchUp takes over what has happened since the last question; mu is held.
func (c *Cached) catchUp() {
	if c.pods != nil && c.poll(c.pods, c.countPod) && c.poll(c.volumes, c.countVolume) {
		return
	}
	// The first time, or nobody asked for so long that events were forgotten.
	c.byNode, c.ofVolume = map[ref]map[string]int{}, map[ref]map[ref]int{}
	c.pods = c.begin(c.pods, podsGVR, c.countPod)
	c.volumes = c.begin(c.volumes, volumesGVR, c.countVolume)
}

func (c *Cached) begin(old *watchcache.Watcher, gvr schema.GroupVersionResource, count func(kind.Object, int)) *watchcache.Watcher {
	if old != nil {
		old.Stop()
	}
	snap, w := c.Registry().Resource(gvr).Cache.SnapshotAndWatch()
	snap.Ascend("", "", func(i *watchcache.Item) bool {
		count(i.Object, 1)
		return true
	})
	return w
}

func (c *Cached) poll(w *watchcache.Watcher, count func(kind.Object, int)) bool {
	events, err := w.Poll()
	if err != nil {
		return false
	}
	for _, e := range events {
		if e.Prev != nil {
			count(e.Prev.Object, -1)
		}
		if e.Type != watchcache.Deleted {
			count(e.Item.Object, 1)
		}
	}
	return true
}

// add changes a counter in a table of tables, which have no zeros.
func add[K comparable](table map[ref]map[K]int, r ref, k K, n int) {
	m := table[r]
	if m == nil {
		m = map[K]int{}
		table[r] = m
	}
	if m[k] += n; m[k] == 0 {
		delete(m, k)
		if len(m) == 0 {
			delete(table, r)
		}
	}
}

func (c *Cached) countPod(o kind.Object, n int) {
	p, ok := o.(*corev1.Pod)
	if !ok || p.Spec.NodeName == "" {
		return
	}
	if _, mirror := p.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
		return // it is the node's own word: it must not open other doors
	}
	eachRef(p, func(r ref) { add(c.byNode, r, p.Spec.NodeName, n) })
}

func (c *Cached) countVolume(o kind.Object, n int) {
	v, ok := o.(*corev1.PersistentVolume)
	if !ok || v.Spec.ClaimRef == nil {
		return
	}
	eachVolumeSecret(v, func(namespace, name string) {
		add(c.ofVolume, ref{"secrets", namespace, name}, claim(v.Spec.ClaimRef), n)
	})
}
