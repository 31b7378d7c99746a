package openapi

import (
	"net/http"
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"

	"knarr.dev/knarr/api/kind"
)

// Served is a kind and how discovery shows its resource and subresources.
type Served struct {
	Kind      *kind.Kind
	Resources []metav1.APIResource
	// ReturnsDeleted: a deletion answers the object, not a Status.
	ReturnsDeleted bool
}

// operation is one method of one path.
type operation struct {
	path, method string
	id           string
	action       string // x-kubernetes-action
	gvk          schema.GroupVersionKind
	tag          string
	places       []parameter // those in the path
	query        []parameter
	body         string // model; empty: none
	patch        bool   // the body is a patch
	answer       string // model; empty: text
	codes        []int
	streams      bool // answers may be watches
}

type parameter struct {
	name, typ, doc string
	in             string
}

// Query parameters of what several operations share.
var (
	listQuery   = parametersOf(reflect.TypeFor[metav1.ListOptions](), metav1.ListOptions{}.SwaggerDoc())
	deleteQuery = parametersOf(reflect.TypeFor[metav1.DeleteOptions](), metav1.DeleteOptions{}.SwaggerDoc())
	createQuery = parametersOf(reflect.TypeFor[metav1.CreateOptions](), metav1.CreateOptions{}.SwaggerDoc())
	updateQuery = parametersOf(reflect.TypeFor[metav1.UpdateOptions](), metav1.UpdateOptions{}.SwaggerDoc())
	patchQuery  = parametersOf(reflect.TypeFor[metav1.PatchOptions](), metav1.PatchOptions{}.SwaggerDoc())
	pretty      = parameter{name: "pretty", typ: "string", in: "query", doc: "If 'true', then the output is pretty printed."}
)

// parametersOf are the query parameters that fill a struct of options.
func parametersOf(t reflect.Type, docs map[string]string) (out []parameter) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" || name == "-" {
			continue
		}
		e := f.Type
		if e.Kind() == reflect.Pointer || e.Kind() == reflect.Slice {
			e = e.Elem()
		}
		typ := "string"
		switch e.Kind() {
		case reflect.Struct: // as Kubernetes: times and conditions are not described
			continue
		case reflect.Bool:
			typ = "boolean"
		case reflect.Int32, reflect.Int64:
			typ = "integer"
		}
		out = append(out, parameter{name: name, typ: typ, doc: docs[name], in: "query"})
	}
	return out
}

func without(list []parameter, name string) (out []parameter) {
	for _, p := range list {
		if p.name != name {
			out = append(out, p)
		}
	}
	return out
}

// operations lists what is served of a kind. Their names are those that generators
// of clients know: the verb, the group and version, where, and the kind.
func (s *schemas) operations(v Served) (out []operation) {
	k := v.Kind
	model := s.kindModel(k)
	for i := range v.Resources {
		r := &v.Resources[i]
		_, sub, _ := strings.Cut(r.Name, "/")
		gvk := k.GVK()
		if r.Kind != k.Kind || r.Group != "" || r.Version != "" {
			gvk = schema.GroupVersionKind{Group: k.Group, Version: k.Version, Kind: r.Kind}
			if r.Version != "" {
				gvk.Group, gvk.Version = r.Group, r.Version
			}
		}
		b := builder{s: s, k: k, returnsDeleted: v.ReturnsDeleted, sub: sub, gvk: gvk, model: s.modelOf(gvk, k, model)}
		if options, ok := connections[gvk.Kind]; ok {
			out = append(out, b.connections(options)...)
			continue
		}
		for _, verb := range r.Verbs {
			out = append(out, b.operations(verb)...)
		}
	}
	return out
}

// connections are the subresources that are connections, by the kind of their options.
var connections = map[string]reflect.Type{
	"PodExecOptions":        reflect.TypeFor[corev1.PodExecOptions](),
	"PodAttachOptions":      reflect.TypeFor[corev1.PodAttachOptions](),
	"PodPortForwardOptions": reflect.TypeFor[corev1.PodPortForwardOptions](),
	"PodProxyOptions":       reflect.TypeFor[corev1.PodProxyOptions](),
	"ServiceProxyOptions":   reflect.TypeFor[corev1.ServiceProxyOptions](),
	"NodeProxyOptions":      reflect.TypeFor[corev1.NodeProxyOptions](),
}

// modelOf is the model of what a subresource has for a body.
func (s *schemas) modelOf(gvk schema.GroupVersionKind, k *kind.Kind, own string) string {
	if gvk == k.GVK() {
		return own
	}
	obj, err := scheme.Scheme.New(gvk)
	if err != nil {
		return own
	}
	t := reflect.TypeOf(obj).Elem()
	s.ref(t)
	s.mark(modelName(t), gvk)
	return modelName(t)
}

// builder makes the operations of one resource or subresource.
type builder struct {
	s     *schemas
	k     *kind.Kind
	sub   string
	gvk   schema.GroupVersionKind
	model string

	returnsDeleted bool
}

func titled(s string) string {
	if s == "" {
		return ""
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// groupTitle is a group in names of operations: RbacAuthorization.
func groupTitle(group string) string {
	if group == "" {
		return "Core"
	}
	out := ""
	for part := range strings.SplitSeq(strings.TrimSuffix(group, ".k8s.io"), ".") {
		out += titled(part)
	}
	return out
}

func (b *builder) id(verb, infix string, namespaced bool, suffix string) string {
	if namespaced {
		infix += "Namespaced"
	}
	return verb + groupTitle(b.k.Group) + titled(b.k.Version) + infix + b.k.Kind + titled(b.sub) + suffix
}

func (b *builder) base() string {
	if b.k.Group == "" {
		return "/api/" + b.k.Version + "/"
	}
	return "/apis/" + b.k.Group + "/" + b.k.Version + "/"
}

// collection is the path of the resource: with of a namespace, if it has one.
func (b *builder) collection(prefix string, of bool) string {
	if b.k.Namespaced && of {
		return b.base() + prefix + "namespaces/{namespace}/" + b.k.Resource
	}
	return b.base() + prefix + b.k.Resource
}

func (b *builder) item(prefix string) string {
	p := b.collection(prefix, true) + "/{name}"
	if b.sub != "" {
		p += "/" + b.sub
	}
	return p
}

func (b *builder) operation(path, method, id, action string) operation {
	group := groupTitle(b.k.Group)
	o := operation{path: path, method: method, id: id, action: action, gvk: b.gvk, answer: b.model, codes: []int{200},
		tag: strings.ToLower(group[:1]) + group[1:] + "_" + b.k.Version}
	for _, name := range []string{"name", "namespace", "path"} {
		if strings.Contains(path, "{"+name+"}") {
			o.places = append(o.places, parameter{name: name, typ: "string", in: "path", doc: pathDocs[name]})
		}
	}
	if action != "connect" {
		o.query = append(o.query, pretty)
	}
	return o
}

var pathDocs = map[string]string{
	"name": "name of the object", "namespace": "object name and auth scope, such as for teams and projects", "path": "path to the resource",
}

func (b *builder) operations(verb string) []operation {
	ns := b.k.Namespaced
	switch verb {
	case "get":
		o := b.operation(b.item(""), http.MethodGet, b.id("read", "", ns, ""), "get")
		if b.k.Resource == "pods" && b.sub == "log" {
			o.answer, o.query = "", append(o.query, parametersOf(reflect.TypeFor[corev1.PodLogOptions](), corev1.PodLogOptions{}.SwaggerDoc())...)
		}
		return []operation{o}
	case "list":
		return b.lists("list", "", "list", b.model+"List")
	case "watch":
		one := b.operation(b.item("watch/"), http.MethodGet, b.id("watch", "", ns, ""), "watch")
		one.answer, one.query, one.streams = watchEvent, append(one.query, listQuery...), true
		b.s.ref(reflect.TypeFor[metav1.WatchEvent]())
		return append(b.lists("watch", "watch/", "watchlist", watchEvent), one)
	case "create":
		path := b.collection("", true)
		if b.sub != "" {
			path = b.item("")
		}
		o := b.operation(path, http.MethodPost, b.id("create", "", ns, ""), "post")
		o.body, o.codes, o.query = b.model, []int{200, 201, 202}, append(o.query, createQuery...)
		return []operation{o}
	case "update":
		o := b.operation(b.item(""), http.MethodPut, b.id("replace", "", ns, ""), "put")
		o.body, o.codes, o.query = b.model, []int{200, 201}, append(o.query, updateQuery...)
		return []operation{o}
	case "patch":
		o := b.operation(b.item(""), http.MethodPatch, b.id("patch", "", ns, ""), "patch")
		o.body, o.patch, o.codes, o.query = patchModel, true, []int{200, 201}, append(o.query, patchQuery...)
		b.s.ref(reflect.TypeFor[metav1.Patch]())
		return []operation{o}
	case "delete":
		o := b.operation(b.item(""), http.MethodDelete, b.id("delete", "", ns, ""), "delete")
		o.body, o.codes, o.query = b.deletion(), []int{200, 202}, append(o.query, deleteQuery...)
		if !b.returnsDeleted {
			o.answer = statusModel
		}
		return []operation{o}
	case "deletecollection":
		o := b.operation(b.collection("", true), http.MethodDelete, b.id("delete", "Collection", ns, ""), "deletecollection")
		o.body, o.query = b.deletion(), append(append(o.query, without(without(listQuery, "watch"), "allowWatchBookmarks")...), deleteQuery...)
		o.answer = statusModel
		return []operation{o}
	}
	return nil
}

var (
	watchEvent  = modelName(reflect.TypeFor[metav1.WatchEvent]())
	patchModel  = modelName(reflect.TypeFor[metav1.Patch]())
	statusModel = modelName(reflect.TypeFor[metav1.Status]())
)

// deletion is the model of the body of deletions; their answers' is added.
func (b *builder) deletion() string {
	b.s.ref(reflect.TypeFor[metav1.Status]())
	b.s.ref(reflect.TypeFor[metav1.DeleteOptions]())
	return modelName(reflect.TypeFor[metav1.DeleteOptions]())
}

// lists are the operations on a collection: of one namespace and of all.
func (b *builder) lists(verb, prefix, action, answer string) []operation {
	list := ""
	if verb == "watch" {
		list = "List"
	}
	o := b.operation(b.collection(prefix, true), http.MethodGet, b.id(verb, "", b.k.Namespaced, list), action)
	o.answer, o.query, o.streams = answer, append(o.query, listQuery...), true
	out := []operation{o}
	if b.k.Namespaced {
		o := b.operation(b.collection(prefix, false), http.MethodGet, b.id(verb, "", false, list+"ForAllNamespaces"), action)
		o.answer, o.query, o.streams = answer, append(o.query, listQuery...), true
		out = append(out, o)
	}
	return out
}

// connections are the operations of a subresource that is a connection.
func (b *builder) connections(options reflect.Type) (out []operation) {
	methods := []string{http.MethodGet, http.MethodPost}
	paths := map[string]string{"": ""}
	if b.sub == "proxy" {
		methods = []string{http.MethodGet, http.MethodPut, http.MethodPost, http.MethodDelete, http.MethodOptions, http.MethodHead, http.MethodPatch}
		paths["/{path}"] = "WithPath"
	}
	docs := descriptionsOf(options)
	for rest, suffix := range paths {
		for _, m := range methods {
			verb := m[:1] + strings.ToLower(m[1:])
			o := b.operation(b.item("")+rest, m, b.id("connect", verb, b.k.Namespaced, suffix), "connect")
			o.answer, o.query = "", parametersOf(options, docs)
			out = append(out, o)
		}
	}
	return out
}
