package apiserver

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kube-openapi/pkg/cached"
	"k8s.io/kube-openapi/pkg/handler"
	"k8s.io/kube-openapi/pkg/handler3"
	"k8s.io/kube-openapi/pkg/spec3"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"knarr.dev/knarr/apiserver/openapi"
)

// openAPI serves the documents. They are made when first asked for, and again
// when what they describe has changed: of version 3 only the group versions that
// did, of version 2 the whole.
type openAPI struct {
	mu         sync.Mutex
	generation int64
	stamp      int64 // of what extension servers serve
	v3         *handler3.OpenAPIService
	v2         http.Handler
	described  map[string][]openapi.Served // by path, what v3 describes
	remotes    map[string]bool             // by path, what extension servers describe
}

func (s *Server) serveOpenAPI(w http.ResponseWriter, r *http.Request, path string) {
	v2, v3 := s.openapi.current(s)
	switch {
	case path == "/openapi/v2":
		v2.ServeHTTP(w, r)
	case path == "/openapi/v3":
		v3.HandleDiscovery(w, r)
	case strings.HasPrefix(path, "/openapi/v3/"):
		v3.HandleGroupVersion(w, r)
	default:
		s.notFound(w, r)
	}
}

// current returns the handlers for what is served now.
func (o *openAPI) current(s *Server) (v2 http.Handler, v3 *handler3.OpenAPIService) {
	o.mu.Lock()
	defer o.mu.Unlock()
	resources, generation := s.reg.Served()
	stamp := s.discoveryStamp()
	if o.v3 != nil && o.generation == generation && o.stamp == stamp {
		return o.v2, o.v3
	}
	if o.v3 == nil {
		o.v3 = handler3.NewOpenAPIService()
	}
	o.generation, o.stamp = generation, stamp
	var all []openapi.Served
	byPath := map[string][]openapi.Served{}
	add := func(v openapi.Served) {
		path := openAPIPath(v.Kind.GVK().GroupVersion())
		byPath[path] = append(byPath[path], v)
		all = append(all, v)
	}
	for _, res := range resources {
		add(openapi.Served{Kind: res.Kind, Resources: resourcesOf(res), ReturnsDeleted: returnsDeleted(res)})
	}
	for _, rv := range reviews() {
		add(openapi.Served{Kind: rv.Kind, Resources: []metav1.APIResource{rv.describe()}})
	}
	for i, k := range virtualKinds {
		add(openapi.Served{Kind: k, Resources: virtualResources()[i : i+1]})
	}
	for path := range o.described {
		if byPath[path] == nil {
			o.v3.DeleteGroupVersion(path)
		}
	}
	for path, kinds := range byPath {
		if slices.EqualFunc(o.described[path], kinds, sameServed) {
			continue
		}
		gv, etag := kinds[0].Kind.GVK().GroupVersion(), strconv.FormatInt(generation, 10)
		o.v3.UpdateGroupVersionLazy(path, cached.Once(cached.Func(func() (*spec3.OpenAPI, string, error) {
			return openapi.V3(gv, kinds), gv.String() + " " + etag, nil
		})))
	}
	o.described = byPath
	o.describeRemotes(s)
	service := handler.NewOpenAPIServiceLazy(cached.Once(cached.Func(func() (*spec.Swagger, string, error) {
		return s.withRemotes(openapi.V2(all)), fmt.Sprintf("v2 %d %d", generation, stamp), nil
	})))
	mux := http.NewServeMux()
	service.RegisterOpenAPIVersionedService("/openapi/v2", pathMux{mux})
	o.v2 = mux
	return o.v2, o.v3
}

// sameServed compares by the kinds: those of definitions are made anew whenever their
// definition changes, the others never change.
func sameServed(a, b openapi.Served) bool {
	return a.Kind == b.Kind || a.Kind.Schema == nil && b.Kind.Schema == nil && a.Kind.GVK() == b.Kind.GVK()
}

func openAPIPath(gv schema.GroupVersion) string {
	if gv.Group == "" {
		return "api/" + gv.Version
	}
	return "apis/" + gv.String()
}

// pathMux fits http.ServeMux to kube-openapi's interface.
type pathMux struct{ *http.ServeMux }

func (m pathMux) Handle(path string, h http.Handler) { m.ServeMux.Handle(path, h) }
