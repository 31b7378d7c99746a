package apiserver

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"slices"
	"sort"
	"strings"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/registry"
)

// discovery holds the answers to "what is served", made when they are first asked
// for after what is served has changed.
type discovery struct {
	generation int64
	stamp      int64 // of what extension servers serve
	stale      map[schema.GroupVersion]bool
	custom     map[schema.GroupVersion]bool // declared while the server runs
	versions   map[schema.GroupVersion]*metav1.APIResourceList
	groups     []metav1.APIGroup // without the legacy group
	legacy     aggregated
	rest       aggregated
}

// aggregated is a whole discovery document with its ETag.
type aggregated struct {
	body []byte
	etag string
}

var allVerbs = metav1.Verbs{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}

func verbsOf(res *registry.Resource) metav1.Verbs {
	if res.Verbs != nil {
		return res.Verbs
	}
	return allVerbs
}

func (s *Server) discovery() *discovery {
	if d := s.discover.Load(); d != nil && d.generation == s.reg.Generation() && d.stamp == s.discoveryStamp() {
		return d
	}
	d := s.newDiscovery()
	s.discover.Store(d)
	return d
}

func (s *Server) newDiscovery() *discovery {
	stamp := s.discoveryStamp() // first: what changes meanwhile makes it anew
	resources, generation := s.reg.Served()
	d := &discovery{generation: generation, stamp: stamp, stale: map[schema.GroupVersion]bool{}, versions: map[schema.GroupVersion]*metav1.APIResourceList{}}
	custom := map[schema.GroupVersion]bool{}
	d.custom = custom
	list := func(gv schema.GroupVersion) *metav1.APIResourceList {
		l := d.versions[gv]
		if l == nil {
			l = &metav1.APIResourceList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "APIResourceList"}, GroupVersion: gv.String(), APIResources: []metav1.APIResource{}}
			d.versions[gv] = l
		}
		return l
	}
	for _, res := range resources {
		l := list(res.GVK().GroupVersion())
		l.APIResources = append(l.APIResources, resourcesOf(res)...)
		custom[res.GVK().GroupVersion()] = res.Custom != nil
	}
	for _, rv := range reviews() {
		l := list(rv.GVK().GroupVersion())
		l.APIResources = append(l.APIResources, rv.describe())
	}
	core := list(schema.GroupVersion{Version: "v1"})
	core.APIResources = append(core.APIResources, virtualResources()...)
	if s.servesUsage() {
		list(metricsVersion).APIResources = usageResources()
	}
	for _, l := range d.versions {
		sort.Slice(l.APIResources, func(i, j int) bool { return l.APIResources[i].Name < l.APIResources[j].Name })
	}
	d.addRemotes(s)
	d.groups = groupsOf(d.versions)
	s.order(d.groups, custom)
	d.legacy = d.document([]metav1.APIGroup{{Versions: []metav1.GroupVersionForDiscovery{{GroupVersion: "v1", Version: "v1"}}}})
	d.rest = d.document(d.groups)
	return d
}

func resourcesOf(res *registry.Resource) []metav1.APIResource {
	k := res.Kind
	out := []metav1.APIResource{{
		Name: k.Resource, SingularName: k.Singular, Namespaced: k.Namespaced, Kind: k.Kind,
		Verbs: verbsOf(res), ShortNames: k.ShortNames, Categories: k.Categories, StorageVersionHash: res.StorageVersionHash(),
	}}
	if k.HasStatus {
		out = append(out, metav1.APIResource{Name: k.Resource + "/status", Namespaced: k.Namespaced, Kind: k.Kind, Verbs: metav1.Verbs{"get", "patch", "update"}})
	}
	if k.Scale != nil {
		out = append(out, metav1.APIResource{Name: k.Resource + "/scale", Namespaced: k.Namespaced, Group: "autoscaling", Version: "v1", Kind: "Scale", Verbs: metav1.Verbs{"get", "patch", "update"}})
	}
	for _, o := range append(slices.Clone(k.Others), builtinSubresources[k.GVR()]...) {
		out = append(out, metav1.APIResource{Name: k.Resource + "/" + o.Name, Namespaced: k.Namespaced, Group: o.GVK.Group, Version: o.GVK.Version, Kind: o.GVK.Kind, Verbs: o.Verbs})
	}
	return out
}

var proxyVerbs = []string{"create", "delete", "get", "patch", "update"}

// builtinSubresources are those whose behaviour is this server's.
var builtinSubresources = map[schema.GroupVersionResource][]kind.Subresource{
	{Version: "v1", Resource: "pods"}: {
		{Name: "attach", GVK: schema.GroupVersionKind{Kind: "PodAttachOptions"}, Verbs: []string{"create", "get"}},
		{Name: "binding", GVK: schema.GroupVersionKind{Kind: "Binding"}, Verbs: []string{"create"}},
		{Name: "eviction", GVK: schema.GroupVersionKind{Group: "policy", Version: "v1", Kind: "Eviction"}, Verbs: []string{"create"}},
		{Name: "exec", GVK: schema.GroupVersionKind{Kind: "PodExecOptions"}, Verbs: []string{"create", "get"}},
		{Name: "log", GVK: schema.GroupVersionKind{Kind: "Pod"}, Verbs: []string{"get"}},
		{Name: "portforward", GVK: schema.GroupVersionKind{Kind: "PodPortForwardOptions"}, Verbs: []string{"create", "get"}},
		{Name: "proxy", GVK: schema.GroupVersionKind{Kind: "PodProxyOptions"}, Verbs: proxyVerbs},
	},
	{Version: "v1", Resource: "services"}: {
		{Name: "proxy", GVK: schema.GroupVersionKind{Kind: "ServiceProxyOptions"}, Verbs: proxyVerbs},
	},
	{Version: "v1", Resource: "nodes"}: {
		{Name: "proxy", GVK: schema.GroupVersionKind{Kind: "NodeProxyOptions"}, Verbs: proxyVerbs},
	},
	{Version: "v1", Resource: "namespaces"}: {
		{Name: "finalize", GVK: schema.GroupVersionKind{Kind: "Namespace"}, Verbs: []string{"update"}},
	},
	{Version: "v1", Resource: "serviceaccounts"}: {
		{Name: "token", GVK: schema.GroupVersionKind{Group: "authentication.k8s.io", Version: "v1", Kind: "TokenRequest"}, Verbs: []string{"create"}},
	},
}

func groupsOf(versions map[schema.GroupVersion]*metav1.APIResourceList) []metav1.APIGroup {
	byName := map[string]*metav1.APIGroup{}
	for gv := range versions {
		if gv.Group == "" {
			continue
		}
		g := byName[gv.Group]
		if g == nil {
			g = &metav1.APIGroup{Name: gv.Group}
			byName[gv.Group] = g
		}
		g.Versions = append(g.Versions, metav1.GroupVersionForDiscovery{GroupVersion: gv.String(), Version: gv.Version})
	}
	var out []metav1.APIGroup
	for _, g := range byName {
		sort.Slice(g.Versions, func(i, j int) bool { return newer(g.Versions[i].Version, g.Versions[j].Version) })
		g.PreferredVersion = g.Versions[0]
		out = append(out, *g)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// newer orders versions as Kubernetes prefers them: v2, v1, v1beta1, v1alpha1.
func newer(a, b string) bool { return version.CompareKubeAwareVersionStrings(a, b) > 0 }

// addRemotes adds what extension servers serve.
func (d *discovery) addRemotes(s *Server) {
	if s.aggregate == nil {
		return
	}
	for _, r := range s.aggregate.Remotes() {
		l := &metav1.APIResourceList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "APIResourceList"}, GroupVersion: r.GroupVersion.String()}
		if r.Resources != nil {
			l.APIResources = r.Resources.APIResources
		}
		d.versions[r.GroupVersion], d.stale[r.GroupVersion] = l, !r.Current
	}
}

// document is the whole of some groups in one.
func (d *discovery) document(groups []metav1.APIGroup) aggregated {
	doc := apidiscoveryv2.APIGroupDiscoveryList{TypeMeta: metav1.TypeMeta{APIVersion: "apidiscovery.k8s.io/v2", Kind: "APIGroupDiscoveryList"}, Items: []apidiscoveryv2.APIGroupDiscovery{}}
	for _, g := range groups {
		item := apidiscoveryv2.APIGroupDiscovery{ObjectMeta: metav1.ObjectMeta{Name: g.Name}}
		for _, v := range g.Versions {
			gv := schema.GroupVersion{Group: g.Name, Version: v.Version}
			fresh := apidiscoveryv2.DiscoveryFreshnessCurrent
			if d.stale[gv] {
				fresh = apidiscoveryv2.DiscoveryFreshnessStale
			}
			item.Versions = append(item.Versions, apidiscoveryv2.APIVersionDiscovery{Version: v.Version, Freshness: fresh, Resources: aggregateResources(gv, d.versions[gv].APIResources, d.custom[gv])})
		}
		doc.Items = append(doc.Items, item)
	}
	b, err := json.Marshal(doc)
	if err != nil {
		panic(err) // a document of plain strings always encodes
	}
	sum := sha256.Sum256(b)
	return aggregated{body: b, etag: `"` + strings.ToUpper(hex.EncodeToString(sum[:])) + `"`}
}

// aggregateResources lists resources with their subresources. A kind without group
// and version is of the resource's own; those of custom resources are said.
func aggregateResources(gv schema.GroupVersion, list []metav1.APIResource, custom bool) []apidiscoveryv2.APIResourceDiscovery {
	var out []apidiscoveryv2.APIResourceDiscovery
	at := map[string]int{}
	for _, r := range list {
		name, sub, isSub := strings.Cut(r.Name, "/")
		kindOf := &metav1.GroupVersionKind{Group: r.Group, Version: r.Version, Kind: r.Kind}
		if r.Version == "" && custom {
			kindOf.Group, kindOf.Version = gv.Group, gv.Version
		}
		if isSub {
			i, ok := at[name]
			if !ok {
				continue
			}
			out[i].Subresources = append(out[i].Subresources, apidiscoveryv2.APISubresourceDiscovery{Subresource: sub, ResponseKind: kindOf, Verbs: r.Verbs})
			continue
		}
		scope := apidiscoveryv2.ScopeCluster
		if r.Namespaced {
			scope = apidiscoveryv2.ScopeNamespace
		}
		at[name] = len(out)
		out = append(out, apidiscoveryv2.APIResourceDiscovery{Resource: r.Name, ResponseKind: kindOf, Scope: scope, SingularResource: r.SingularName, Verbs: r.Verbs, ShortNames: r.ShortNames, Categories: r.Categories})
	}
	return out
}

func wantsDiscovery(as, group, version string) bool {
	return as == "APIGroupDiscoveryList" && group == "apidiscovery.k8s.io" && version == "v2"
}

// serveDiscovery answers /api, /apis and what lies below; false if the path is
// not one of them.
func (s *Server) serveDiscovery(w http.ResponseWriter, r *http.Request, path string) bool {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	if parts[0] != "api" && parts[0] != "apis" || len(parts) > 3 {
		return false
	}
	d := s.discovery()
	f, err := negotiate(r, wantsDiscovery)
	if err != nil {
		writeError(w, r, err)
		return true
	}
	switch {
	case len(parts) == 1 && f.as != "":
		doc := d.rest
		if parts[0] == "api" {
			doc = d.legacy
		}
		w.Header().Set("ETag", doc.etag)
		w.Header().Set("Vary", "Accept")
		if r.Header.Get("If-None-Match") == doc.etag {
			w.WriteHeader(http.StatusNotModified)
			return true
		}
		writeBody(w, r, http.StatusOK, "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList", doc.body)
	case path == "/api" || path == "/api/":
		writeObject(w, r, http.StatusOK, f, &metav1.APIVersions{TypeMeta: metav1.TypeMeta{Kind: "APIVersions", APIVersion: "v1"}, Versions: []string{"v1"},
			ServerAddressByClientCIDRs: []metav1.ServerAddressByClientCIDR{{ClientCIDR: "0.0.0.0/0", ServerAddress: r.Host}}})
	case parts[0] == "api" && len(parts) == 2:
		return s.serveVersion(w, r, f, schema.GroupVersion{Version: parts[1]})
	case parts[0] == "apis" && len(parts) == 1:
		writeObject(w, r, http.StatusOK, f, &metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}, Groups: d.groups})
	case parts[0] == "apis" && len(parts) == 2:
		for _, g := range d.groups {
			if g.Name == parts[1] {
				g.TypeMeta = metav1.TypeMeta{Kind: "APIGroup", APIVersion: "v1"}
				writeObject(w, r, http.StatusOK, f, &g)
				return true
			}
		}
		return false
	case parts[0] == "apis":
		return s.serveVersion(w, r, f, schema.GroupVersion{Group: parts[1], Version: parts[2]})
	default:
		return false
	}
	return true
}

func (s *Server) serveVersion(w http.ResponseWriter, r *http.Request, f format, gv schema.GroupVersion) bool {
	l, ok := s.discovery().versions[gv]
	if ok {
		writeObject(w, r, http.StatusOK, f, l)
	}
	return ok
}
