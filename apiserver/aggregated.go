package apiserver

import (
	"fmt"
	"net/http"
	"sort"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kube-openapi/pkg/cached"
	"k8s.io/kube-openapi/pkg/spec3"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"knarr.dev/knarr/apiserver/aggregate"
	"knarr.dev/knarr/apiserver/registry"
)

// LocalVersions lists the groups and versions that a registry's server serves
// itself.
func LocalVersions(reg *registry.Registry) []aggregate.Local {
	var out []aggregate.Local
	seen := map[schema.GroupVersion]bool{}
	add := func(gv schema.GroupVersion, custom bool) {
		if !seen[gv] {
			seen[gv] = true
			out = append(out, aggregate.Local{GroupVersion: gv, Custom: custom})
		}
	}
	for _, res := range reg.Resources() {
		add(res.GVK().GroupVersion(), res.Custom != nil)
	}
	for _, rv := range reviews() {
		add(rv.GVK().GroupVersion(), false)
	}
	return out
}

// serveAggregated passes a request on to the extension server that serves it;
// false if there is none.
func (s *Server) serveAggregated(w http.ResponseWriter, r *http.Request, info *requestInfo, user *authenticationv1.UserInfo) bool {
	if s.aggregate == nil || !s.aggregate.Serves(info.Path) {
		return false
	}
	s.aggregate.Serve(w, r, user, func(message string) { writeError(w, r, apierrors.NewServiceUnavailable(message)) })
	return true
}

// discoveryStamp changes whenever discovery does.
func (s *Server) discoveryStamp() int64 {
	if s.aggregate == nil {
		return 0
	}
	return s.aggregate.Generation()
}

// order sorts groups and their versions by the priorities of their APIServices.
func (s *Server) order(groups []metav1.APIGroup, custom map[schema.GroupVersion]bool) {
	if s.aggregate == nil {
		return
	}
	highest := map[string]int32{}
	for i := range groups {
		g := &groups[i]
		versions := map[string]int32{}
		for _, v := range g.Versions {
			gv := schema.GroupVersion{Group: g.Name, Version: v.Version}
			group, version := s.aggregate.Priority(gv, custom[gv])
			versions[v.Version], highest[g.Name] = version, max(highest[g.Name], group)
		}
		sort.SliceStable(g.Versions, func(i, j int) bool { return versions[g.Versions[i].Version] > versions[g.Versions[j].Version] })
		g.PreferredVersion = g.Versions[0]
	}
	sort.SliceStable(groups, func(i, j int) bool { return highest[groups[i].Name] > highest[groups[j].Name] })
}

// describeRemotes adds what extension servers say of their groups and versions,
// asked when a client asks.
func (o *openAPI) describeRemotes(s *Server) {
	if s.aggregate == nil {
		return
	}
	present := map[string]bool{}
	for _, r := range s.aggregate.Remotes() {
		path := openAPIPath(r.GroupVersion)
		if !r.Current || o.described[path] != nil {
			continue
		}
		present[path] = true
		etag := fmt.Sprintf("%s %d", r.GroupVersion, o.stamp)
		o.v3.UpdateGroupVersionLazy(path, cached.Once(cached.Func(func() (*spec3.OpenAPI, string, error) {
			doc, err := s.aggregate.OpenAPIV3(s.stopping, r.GroupVersion)
			if err != nil { // the rest of the documents must not fail with it
				s.log.Debug("OpenAPI v3 of an extension server is left out", "version", r.GroupVersion, "error", err)
				doc = &spec3.OpenAPI{Version: "3.0.0", Info: &spec.Info{InfoProps: spec.InfoProps{Title: r.Group}}, Paths: &spec3.Paths{}}
			}
			return doc, etag, nil
		})))
	}
	for path := range o.remotes {
		if !present[path] && o.described[path] == nil {
			o.v3.DeleteGroupVersion(path)
		}
	}
	o.remotes = present
}

// withRemotes adds to a document of version 2 what extension servers say.
func (s *Server) withRemotes(doc *spec.Swagger) *spec.Swagger {
	if s.aggregate != nil {
		s.aggregate.MergeOpenAPIV2(s.stopping, doc)
	}
	return doc
}
