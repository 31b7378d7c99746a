package apiserver

import (
	"net/http"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kube-openapi/pkg/cached"
	"k8s.io/kube-openapi/pkg/handler"
	"k8s.io/kube-openapi/pkg/handler3"
	"k8s.io/kube-openapi/pkg/spec3"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/openapi"
)

// openAPI serves the documents; they are made when first asked for.
type openAPI struct {
	once sync.Once
	v3   *handler3.OpenAPIService
	v2   http.Handler
}

func (s *Server) serveOpenAPI(w http.ResponseWriter, r *http.Request, path string) {
	o := &s.openapi
	o.once.Do(func() { o.build(s) })
	switch {
	case path == "/openapi/v2":
		o.v2.ServeHTTP(w, r)
	case path == "/openapi/v3":
		o.v3.HandleDiscovery(w, r)
	case strings.HasPrefix(path, "/openapi/v3/"):
		o.v3.HandleGroupVersion(w, r)
	default:
		s.notFound(w, r)
	}
}

func (o *openAPI) build(s *Server) {
	var all []*kind.Kind
	byVersion := map[schema.GroupVersion][]*kind.Kind{}
	for _, res := range s.reg.Resources() {
		gv := res.GVK().GroupVersion()
		byVersion[gv] = append(byVersion[gv], res.Kind)
		all = append(all, res.Kind)
	}
	o.v3 = handler3.NewOpenAPIService()
	for gv, kinds := range byVersion {
		path := "apis/" + gv.String()
		if gv.Group == "" {
			path = "api/" + gv.Version
		}
		o.v3.UpdateGroupVersionLazy(path, cached.Once(cached.Func(func() (*spec3.OpenAPI, string, error) {
			return openapi.V3(gv, kinds), gv.String(), nil
		})))
	}
	v2 := handler.NewOpenAPIServiceLazy(cached.Once(cached.Func(func() (*spec.Swagger, string, error) {
		return openapi.V2(all), "v2", nil
	})))
	mux := http.NewServeMux()
	v2.RegisterOpenAPIVersionedService("/openapi/v2", pathMux{mux})
	o.v2 = mux
}

// pathMux fits http.ServeMux to kube-openapi's interface.
type pathMux struct{ *http.ServeMux }

func (m pathMux) Handle(path string, h http.Handler) { m.ServeMux.Handle(path, h) }
