package apiserver

import (
	"encoding/json"
	"fmt"
	"net/http"
	"sort"
	"strings"

	"knarr.dev/knarr/apiserver/codec"
)

// Ready marks a named start-up step as done (nil) or failed. /readyz waits for
// all the steps announced by Await.
func (s *Server) Ready(step string, err error) { s.ready.Store(step, readiness{err: err, done: true}) }

// Await announces a start-up step.
func (s *Server) Await(step string) { s.ready.LoadOrStore(step, readiness{}) }

type readiness struct {
	done bool
	err  error
}

// servePath answers everything that is not a resource.
func (s *Server) servePath(w http.ResponseWriter, r *http.Request, info *requestInfo) {
	path := info.Path
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		s.notFound(w, r)
	case path == "/version" || path == "/version/":
		b, err := json.MarshalIndent(s.version, "", "  ")
		if err != nil {
			writeError(w, r, err)
			return
		}
		writeBody(w, r, http.StatusOK, codec.JSON, b)
	case path == "/livez" || strings.HasPrefix(path, "/livez/") || path == "/healthz" || strings.HasPrefix(path, "/healthz/"):
		s.health(w, r, false)
	case path == "/readyz" || strings.HasPrefix(path, "/readyz/"):
		s.health(w, r, true)
	case path == "/.well-known/openid-configuration" && s.tokens != nil:
		s.writePlain(w, r, "application/json", map[string]any{
			"issuer": s.tokens.Issuer, "jwks_uri": s.tokens.Issuer + keySetPath, "response_types_supported": []string{"id_token"},
			"subject_types_supported": []string{"public"}, "id_token_signing_alg_values_supported": []string{"ES256"}})
	case path == keySetPath && s.tokens != nil:
		s.writePlain(w, r, "application/jwk-set+json", s.tokens.KeySet())
	case path == "/metrics":
		s.metrics.handler.ServeHTTP(w, r)
	case strings.HasPrefix(path, "/openapi/"):
		s.serveOpenAPI(w, r, path)
	case s.serveDiscovery(w, r, path):
	case path == "/":
		s.serveIndex(w, r)
	default:
		s.notFound(w, r)
	}
}

// keySetPath is where the public keys of service account tokens are.
const keySetPath = "/openid/v1/jwks"

func (s *Server) writePlain(w http.ResponseWriter, r *http.Request, media string, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		writeError(w, r, err)
		return
	}
	writeBody(w, r, http.StatusOK, media, b)
}

func (s *Server) serveIndex(w http.ResponseWriter, r *http.Request) {
	paths := []string{"/.well-known/openid-configuration", "/api", "/api/v1", "/apis", "/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version"}
	for _, g := range s.discovery().groups {
		paths = append(paths, "/apis/"+g.Name)
		for _, v := range g.Versions {
			paths = append(paths, "/apis/"+v.GroupVersion)
		}
	}
	sort.Strings(paths)
	b, err := json.Marshal(map[string][]string{"paths": paths})
	if err != nil {
		writeError(w, r, err)
		return
	}
	writeBody(w, r, http.StatusOK, codec.JSON, b)
}

func (s *Server) health(w http.ResponseWriter, r *http.Request, ready bool) {
	var lines []string
	failed := false
	lines = append(lines, "[+]ping ok")
	if s.stopping.Err() != nil {
		lines, failed = append(lines, "[-]shutdown failed: the server is stopping"), true
	}
	if ready {
		s.ready.Range(func(k, v any) bool {
			st := v.(readiness)
			switch {
			case st.err != nil:
				lines, failed = append(lines, fmt.Sprintf("[-]%s failed: %v", k, st.err)), true
			case !st.done:
				lines, failed = append(lines, fmt.Sprintf("[-]%s failed: not finished", k)), true
			default:
				lines = append(lines, fmt.Sprintf("[+]%s ok", k))
			}
			return true
		})
	}
	sort.Strings(lines[1:])
	name := strings.Trim(strings.SplitN(r.URL.Path, "/", 3)[1], "/")
	switch {
	case failed:
		writeBody(w, r, http.StatusInternalServerError, "text/plain; charset=utf-8", []byte(strings.Join(lines, "\n")+"\n"+name+" check failed\n"))
	case r.URL.Query().Has("verbose"):
		writeBody(w, r, http.StatusOK, "text/plain; charset=utf-8", []byte(strings.Join(lines, "\n")+"\n"+name+" check passed\n"))
	default:
		writeBody(w, r, http.StatusOK, "text/plain; charset=utf-8", []byte("ok"))
	}
}
