// Package plan decides where pods go. It is pure: values in, a node's name out;
// no clock, no I/O, no goroutine.
//
// A Snapshot is kept incrementally as nodes and pods change. Pods that are equal
// in all that scheduling looks at form a class; for a class the snapshot keeps a
// heap of nodes ordered by score, and a placed pod changes one node in it. So a
// decision for a pod like the one before costs the depth of the heap instead of
// a look at every node. Pods whose score or feasibility on one node depends on
// other nodes (affinity between pods, spreading, preferences) are decided by a
// look at all nodes.
package plan

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// Snapshot is the cluster as scheduling sees it. It is not safe for use by
// several goroutines.
type Snapshot struct {
	nodes      []*node
	index      map[string]int
	pods       map[types.UID]*placed
	byNode     map[string]map[types.UID]*placed
	antiPods   map[types.UID]*placed // pods with required anti-affinity
	namespaces map[string]labels.Set
	imageNodes map[string]int
	preferring int // nodes with a PreferNoSchedule taint
	classes    map[string]*class
	changes    []int // indexes of changed nodes, in order; classes read on from where they stopped
	base       int   // position of changes[0] in the whole history
	random     uint64
}

// node is one node's state.
type node struct {
	obj         *corev1.Node
	name        string
	allocatable amounts
	used        amounts
	assumed     amounts // used, with defaults for pods without requests: for scores
	ports       map[port]int
	images      map[string]int64
	owners      map[types.UID]int // pods of each controller
	pods        map[types.UID]*placed
	prefer      bool
}

type placed struct {
	pod  *corev1.Pod
	node string
	need *need
}

// New returns an empty snapshot.
func New() *Snapshot {
	return &Snapshot{
		index: map[string]int{}, pods: map[types.UID]*placed{}, byNode: map[string]map[types.UID]*placed{}, antiPods: map[types.UID]*placed{},
		namespaces: map[string]labels.Set{}, imageNodes: map[string]int{}, classes: map[string]*class{},
	}
}

// Len is the number of nodes.
func (s *Snapshot) Len() int { return len(s.nodes) }

// SetNode adds or replaces a node.
func (s *Snapshot) SetNode(obj *corev1.Node) {
	i, ok := s.index[obj.Name]
	if !ok {
		i = len(s.nodes)
		s.index[obj.Name] = i
		s.nodes = append(s.nodes, &node{name: obj.Name, ports: map[port]int{}, owners: map[types.UID]int{}, pods: map[types.UID]*placed{}})
		clear(s.classes) // their heaps have no place for it
	}
	n := s.nodes[i]
	s.dropStatic(n)
	n.obj, n.allocatable = obj, amountsOf(obj.Status.Allocatable)
	n.images = map[string]int64{}
	for _, img := range obj.Status.Images {
		for _, name := range img.Names {
			n.images[name] = img.SizeBytes
			s.imageNodes[name]++
		}
	}
	n.prefer = false
	for _, t := range obj.Spec.Taints {
		n.prefer = n.prefer || t.Effect == corev1.TaintEffectPreferNoSchedule
	}
	if n.prefer {
		s.preferring++
	}
	if !ok {
		for _, p := range s.byNode[obj.Name] {
			n.add(p)
		}
	}
	s.changed(i)
}

func (s *Snapshot) dropStatic(n *node) {
	for name := range n.images {
		if s.imageNodes[name]--; s.imageNodes[name] == 0 {
			delete(s.imageNodes, name)
		}
	}
	if n.prefer {
		s.preferring--
	}
}

// RemoveNode forgets a node; its pods are remembered until they are removed.
func (s *Snapshot) RemoveNode(name string) {
	i, ok := s.index[name]
	if !ok {
		return
	}
	s.dropStatic(s.nodes[i])
	last := len(s.nodes) - 1
	s.nodes[i] = s.nodes[last]
	s.index[s.nodes[i].name] = i
	s.nodes = s.nodes[:last]
	delete(s.index, name)
	clear(s.classes)
}

// Node returns a node's object, or nil.
func (s *Snapshot) Node(name string) *corev1.Node {
	if i, ok := s.index[name]; ok {
		return s.nodes[i].obj
	}
	return nil
}

// SetNamespace notes a namespace's labels, for affinity terms that select by them.
func (s *Snapshot) SetNamespace(name string, l map[string]string) { s.namespaces[name] = l }

// RemoveNamespace forgets a namespace.
func (s *Snapshot) RemoveNamespace(name string) { delete(s.namespaces, name) }

// AddPod counts a pod on a node; a pod that is counted already is replaced.
func (s *Snapshot) AddPod(pod *corev1.Pod, nodeName string) {
	if old := s.pods[pod.UID]; old != nil {
		if old.node == nodeName && old.pod.Generation == pod.Generation && old.pod.Generation > 0 && sameLabels(old.pod.Labels, pod.Labels) {
			old.pod = pod
			return
		}
		if old.node == nodeName && old.pod == pod {
			return
		}
		s.RemovePod(pod.UID)
	}
	p := &placed{pod: pod, node: nodeName, need: needOf(pod)}
	s.pods[pod.UID] = p
	if s.byNode[nodeName] == nil {
		s.byNode[nodeName] = map[types.UID]*placed{}
	}
	s.byNode[nodeName][pod.UID] = p
	if a := pod.Spec.Affinity; a != nil && a.PodAntiAffinity != nil && len(a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution) > 0 {
		s.antiPods[pod.UID] = p
	}
	if i, ok := s.index[nodeName]; ok {
		s.nodes[i].add(p)
		s.changed(i)
	}
}

// RemovePod takes a pod off its node; an unknown one is ignored.
func (s *Snapshot) RemovePod(uid types.UID) {
	p := s.pods[uid]
	if p == nil {
		return
	}
	delete(s.pods, uid)
	delete(s.antiPods, uid)
	delete(s.byNode[p.node], uid)
	if len(s.byNode[p.node]) == 0 {
		delete(s.byNode, p.node)
	}
	if i, ok := s.index[p.node]; ok {
		s.nodes[i].remove(p)
		s.changed(i)
	}
}

// NodeOf tells where a pod is counted; empty: nowhere.
func (s *Snapshot) NodeOf(uid types.UID) string {
	if p := s.pods[uid]; p != nil {
		return p.node
	}
	return ""
}

// maxChanges bounds the history; a class that is further behind starts anew.
const maxChanges = 1 << 16

func (s *Snapshot) changed(i int) {
	if len(s.changes) >= maxChanges {
		s.base += len(s.changes)
		s.changes = s.changes[:0]
	}
	s.changes = append(s.changes, i)
}

func (n *node) add(p *placed) {
	n.pods[p.pod.UID] = p
	n.used.add(&p.need.real, 1)
	n.assumed.add(&p.need.scored, 1)
	for _, q := range p.need.ports {
		n.ports[q]++
	}
	if p.need.owner != "" {
		n.owners[p.need.owner]++
	}
}

func (n *node) remove(p *placed) {
	delete(n.pods, p.pod.UID)
	n.used.add(&p.need.real, -1)
	n.assumed.add(&p.need.scored, -1)
	for _, q := range p.need.ports {
		if n.ports[q]--; n.ports[q] == 0 {
			delete(n.ports, q)
		}
	}
	if p.need.owner != "" {
		if n.owners[p.need.owner]--; n.owners[p.need.owner] == 0 {
			delete(n.owners, p.need.owner)
		}
	}
}

func sameLabels(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return true
}
