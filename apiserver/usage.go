package apiserver

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"knarr.dev/knarr/apiserver/codec"
	"knarr.dev/knarr/apiserver/watchcache"
)

// metrics.k8s.io is served without metrics-server: nothing is collected beforehand,
// the nodes are asked when somebody asks for their or their pods' usage, all side by
// side. Who installs metrics-server replaces it: its APIService goes first.

var metricsVersion = metricsv1beta1.SchemeGroupVersion

const (
	// usageTimeout is how long a node may take to answer.
	usageTimeout = 5 * time.Second
	// usageAtOnce is how many nodes are asked at a time.
	usageAtOnce = 64
	// windowHeader is how knarr's agents tell the time that their rates are of; a
	// kubelet's are of about windowElse.
	windowHeader = "Knarr-Stats-Window"
	windowElse   = 10 * time.Second
)

// servesUsage tells whether nodes can be asked.
func (s *Server) servesUsage() bool { return s.kubelet.Transport != nil }

func usageResources() []metav1.APIResource {
	return []metav1.APIResource{
		{Name: "nodes", Kind: "NodeMetrics", Verbs: metav1.Verbs{"get", "list"}},
		{Name: "pods", Namespaced: true, Kind: "PodMetrics", Verbs: metav1.Verbs{"get", "list"}},
	}
}

// serveUsage answers a request for the usage of nodes or pods; false if it is none.
func (s *Server) serveUsage(w http.ResponseWriter, r *http.Request, info *requestInfo) bool {
	if info.Group != metricsVersion.Group || info.Version != metricsVersion.Version || info.Subresource != "" || !s.servesUsage() {
		return false
	}
	var find func(*http.Request, *requestInfo, selection) (usageList, error)
	switch {
	case info.Resource == "nodes" && info.Namespace == "":
		find = s.nodeUsage
	case info.Resource == "pods" && (info.Namespace != "" || info.Name == "" || info.selected):
		find = s.podUsage
	default:
		return false
	}
	info.known = true
	gr := schema.GroupResource{Group: info.Group, Resource: info.Resource}
	if err := func() error {
		if info.Verb != "get" && info.Verb != "list" {
			return apierrors.NewMethodNotSupported(gr, info.Verb)
		}
		f, err := negotiate(r, anyTransformation)
		if err != nil {
			return err
		}
		sel, err := selectionOf(info)
		if err != nil {
			return err
		}
		list, err := find(r, info, sel)
		if err != nil {
			return err
		}
		return writeUsage(w, r, f, info, gr, list)
	}(); err != nil {
		writeError(w, r, err)
	}
	return true
}

// selection is what a list asks for.
type selection struct {
	labels labels.Selector
	fields fields.Selector
}

func selectionOf(info *requestInfo) (selection, error) {
	l, err := labels.Parse(info.LabelSelector)
	if err != nil {
		return selection{}, apierrors.NewBadRequest(err.Error())
	}
	f, err := fields.ParseSelector(info.FieldSelector)
	if err != nil {
		return selection{}, apierrors.NewBadRequest(err.Error())
	}
	for _, q := range f.Requirements() {
		if q.Field != "metadata.name" && q.Field != "metadata.namespace" {
			return selection{}, apierrors.NewBadRequest(fmt.Sprintf("field label not supported: %s", q.Field))
		}
	}
	return selection{l, f}, nil
}

func (s selection) matches(m metav1.Object) bool {
	return s.labels.Matches(labels.Set(m.GetLabels())) && s.fields.Matches(fields.Set{"metadata.name": m.GetName(), "metadata.namespace": m.GetNamespace()})
}

// usageList is an answer before its form is chosen.
type usageList struct {
	list  runtime.Object
	items []runtime.Object
	rows  []usageRow
}

type usageRow struct {
	meta   *metav1.ObjectMeta
	usage  corev1.ResourceList
	window time.Duration
}

func (s *Server) nodeUsage(r *http.Request, info *requestInfo, sel selection) (usageList, error) {
	var nodes []*corev1.Node
	s.nodes().Ascend("", "", func(it *watchcache.Item) bool {
		n := it.Object.(*corev1.Node)
		if (info.Name == "" || n.Name == info.Name) && sel.matches(n) {
			nodes = append(nodes, n)
		}
		return true
	})
	answers := s.askNodes(r.Context(), nodes)
	out := &metricsv1beta1.NodeMetricsList{TypeMeta: typeOf("NodeMetricsList"), Items: []metricsv1beta1.NodeMetrics{}}
	for i, n := range nodes {
		a := answers[i]
		if a == nil {
			continue
		}
		usage := usageOf(a.Node.CPU, a.Node.Memory)
		if len(usage) < 2 {
			continue
		}
		out.Items = append(out.Items, metricsv1beta1.NodeMetrics{ObjectMeta: s.usageMeta(n), Timestamp: a.Node.CPU.Time, Window: metav1.Duration{Duration: a.window}, Usage: usage})
	}
	l := usageList{list: out}
	for i := range out.Items {
		m := &out.Items[i]
		l.items = append(l.items, m)
		l.rows = append(l.rows, usageRow{&m.ObjectMeta, m.Usage, m.Window.Duration})
	}
	return l, nil
}

func (s *Server) podUsage(r *http.Request, info *requestInfo, sel selection) (usageList, error) {
	byNode := map[string][]*corev1.Pod{}
	prefix := ""
	if info.Namespace != "" {
		prefix = info.Namespace + "/"
	}
	s.reg.Resource(schema.GroupVersionResource{Version: "v1", Resource: "pods"}).Cache.Snapshot().Ascend(prefix, "", func(it *watchcache.Item) bool {
		p := it.Object.(*corev1.Pod)
		if p.Status.Phase == corev1.PodRunning && p.Spec.NodeName != "" && (info.Name == "" || p.Name == info.Name) && sel.matches(p) {
			byNode[p.Spec.NodeName] = append(byNode[p.Spec.NodeName], p)
		}
		return true
	})
	var nodes []*corev1.Node
	s.nodes().Ascend("", "", func(it *watchcache.Item) bool {
		if n := it.Object.(*corev1.Node); byNode[n.Name] != nil {
			nodes = append(nodes, n)
		}
		return true
	})
	out := &metricsv1beta1.PodMetricsList{TypeMeta: typeOf("PodMetricsList"), Items: []metricsv1beta1.PodMetrics{}}
	for i, a := range s.askNodes(r.Context(), nodes) {
		if a == nil {
			continue
		}
		for _, p := range byNode[nodes[i].Name] {
			if m, ok := a.pod(p); ok {
				m.ObjectMeta = s.usageMeta(p)
				out.Items = append(out.Items, m)
			}
		}
	}
	slices.SortFunc(out.Items, func(a, b metricsv1beta1.PodMetrics) int {
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	l := usageList{list: out}
	for i := range out.Items {
		m := &out.Items[i]
		total := corev1.ResourceList{}
		for _, c := range m.Containers {
			for name, q := range c.Usage {
				sum := total[name]
				sum.Add(q)
				total[name] = sum
			}
		}
		l.items = append(l.items, m)
		l.rows = append(l.rows, usageRow{&m.ObjectMeta, total, m.Window.Duration})
	}
	return l, nil
}

func (s *Server) nodes() *watchcache.Snapshot {
	return s.reg.Resource(schema.GroupVersionResource{Version: "v1", Resource: "nodes"}).Cache.Snapshot()
}

func typeOf(kind string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: metricsVersion.String(), Kind: kind}
}

// usageMeta is the metadata of an object's usage, as metrics-server gives it.
func (s *Server) usageMeta(o metav1.Object) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: o.GetName(), Namespace: o.GetNamespace(), Labels: o.GetLabels(), CreationTimestamp: metav1.NewTime(s.now())}
}

// nodeAnswer is what is read of a node's summary.
type nodeAnswer struct {
	Node struct {
		CPU    *cpuUse    `json:"cpu"`
		Memory *memoryUse `json:"memory"`
	} `json:"node"`
	Pods []struct {
		Ref struct {
			Name      string `json:"name"`
			Namespace string `json:"namespace"`
		} `json:"podRef"`
		Containers []struct {
			Name   string     `json:"name"`
			CPU    *cpuUse    `json:"cpu"`
			Memory *memoryUse `json:"memory"`
		} `json:"containers"`
	} `json:"pods"`
	window time.Duration
}

type cpuUse struct {
	Time      metav1.Time `json:"time"`
	NanoCores *uint64     `json:"usageNanoCores"`
}

type memoryUse struct {
	WorkingSet *uint64 `json:"workingSetBytes"`
}

func usageOf(c *cpuUse, m *memoryUse) corev1.ResourceList {
	u := corev1.ResourceList{}
	if c != nil && c.NanoCores != nil {
		u[corev1.ResourceCPU] = *resource.NewScaledQuantity(int64(*c.NanoCores), resource.Nano)
	}
	if m != nil && m.WorkingSet != nil {
		u[corev1.ResourceMemory] = *resource.NewQuantity(int64(*m.WorkingSet), resource.BinarySI)
	}
	return u
}

// pod finds a pod's usage; false while a container of it has none yet.
func (a *nodeAnswer) pod(p *corev1.Pod) (metricsv1beta1.PodMetrics, bool) {
	m := metricsv1beta1.PodMetrics{Window: metav1.Duration{Duration: a.window}, Containers: []metricsv1beta1.ContainerMetrics{}}
	for i := range a.Pods {
		// Not by UID: that of a static pod is not its mirror's.
		if ref := &a.Pods[i].Ref; ref.Name != p.Name || ref.Namespace != p.Namespace {
			continue
		}
		for _, c := range a.Pods[i].Containers {
			usage := usageOf(c.CPU, c.Memory)
			if len(usage) < 2 {
				return m, false
			}
			if m.Timestamp.IsZero() || c.CPU.Time.Before(&m.Timestamp) {
				m.Timestamp = c.CPU.Time
			}
			m.Containers = append(m.Containers, metricsv1beta1.ContainerMetrics{Name: c.Name, Usage: usage})
		}
	}
	return m, len(m.Containers) > 0
}

// askNodes reads the nodes' summaries; nil stands for a node that does not answer.
func (s *Server) askNodes(ctx context.Context, nodes []*corev1.Node) []*nodeAnswer {
	ctx, cancel := context.WithTimeout(ctx, usageTimeout)
	defer cancel()
	out := make([]*nodeAnswer, len(nodes))
	var g errgroup.Group
	g.SetLimit(usageAtOnce)
	var once sync.Once
	for i, n := range nodes {
		g.Go(func() error {
			a, err := s.askNode(ctx, n)
			if err != nil {
				once.Do(func() { s.log.Debug("a node did not tell its usage", "node", n.Name, "error", err) })
				return nil
			}
			out[i] = a
			return nil
		})
	}
	_ = g.Wait() // nothing fails as a whole
	return out
}

func (s *Server) askNode(ctx context.Context, n *corev1.Node) (*nodeAnswer, error) {
	base, err := s.nodeURL(n)
	if err != nil {
		return nil, err
	}
	base.Path, base.RawQuery = "/stats/summary", "only_cpu_and_memory=true"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base.String(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := s.kubelet.Transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", base, resp.Status)
	}
	a := &nodeAnswer{window: windowElse}
	if err := json.NewDecoder(resp.Body).Decode(a); err != nil {
		return nil, fmt.Errorf("%s: %w", base, err)
	}
	if d, err := time.ParseDuration(resp.Header.Get(windowHeader)); err == nil && d > 0 {
		a.window = d
	}
	return a, nil
}

// writeUsage sends an answer in the form that the client wants.
func writeUsage(w http.ResponseWriter, r *http.Request, f format, info *requestInfo, gr schema.GroupResource, l usageList) error {
	one := info.Verb == "get" && !info.selected
	if one && len(l.items) == 0 {
		name := info.Name
		if info.Namespace != "" {
			name = info.Namespace + "/" + name
		}
		return apierrors.NewNotFound(gr, name)
	}
	var out runtime.Object = l.list
	switch {
	case f.as == "Table":
		out = usageTable(l.rows)
	case f.as != "" && one:
		out = partialUsage(l.rows[0].meta)
	case f.as != "":
		p := &metav1.PartialObjectMetadataList{TypeMeta: metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "PartialObjectMetadataList"}, Items: []metav1.PartialObjectMetadata{}}
		for _, row := range l.rows {
			p.Items = append(p.Items, *partialUsage(row.meta))
		}
		out = p
	case one:
		kind := "NodeMetrics"
		if gr.Resource == "pods" {
			kind = "PodMetrics"
		}
		out = l.items[0]
		codec.SetType(out, metricsVersion.WithKind(kind))
	}
	writeObject(w, r, http.StatusOK, f, out)
	return nil
}

func partialUsage(m *metav1.ObjectMeta) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "PartialObjectMetadata"}, ObjectMeta: *m}
}

// usageTable has the columns of metrics-server.
func usageTable(rows []usageRow) *metav1.Table {
	t := &metav1.Table{TypeMeta: metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "Table"}, ColumnDefinitions: []metav1.TableColumnDefinition{
		{Name: "Name", Type: "string", Format: "name", Description: "Name of the resource"},
		{Name: "cpu", Type: "string", Format: "quantity"}, {Name: "memory", Type: "string", Format: "quantity"},
		{Name: "Window", Type: "string", Format: "duration"}}, Rows: []metav1.TableRow{}}
	for _, row := range rows {
		t.Rows = append(t.Rows, metav1.TableRow{
			Cells:  []any{row.meta.Name, row.usage.Cpu().String(), row.usage.Memory().String(), row.window.String()},
			Object: runtime.RawExtension{Object: partialUsage(row.meta)}})
	}
	return t
}
