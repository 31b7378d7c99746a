package apiserver

import (
	"bytes"
	"io"
	"net/http"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"

	"knarr.dev/knarr/apiserver/audit"
	"knarr.dev/knarr/apiserver/codec"
	"knarr.dev/knarr/apiserver/watchcache"
)

// audited is what the recorder of a request that is audited keeps.
type audited struct {
	trail    *audit.Trail
	status   *metav1.Status // of an error
	request  *bytes.Buffer  // nil: not wanted
	response *bytes.Buffer
	lasting  bool
	media    string // of the request's body
}

// audit begins a request's trail, if there is a policy that wants one.
func (s *Server) beginAudit(w *recorder, r *http.Request, user *authenticationv1.UserInfo, info *requestInfo) {
	t := s.audit.Begin(r, user, action(user, info))
	if t == nil {
		return
	}
	a := &audited{trail: t, lasting: info.Verb == "watch" || lasting(info)}
	w.audited = a
	w.Header().Set("Audit-Id", t.ID())
	if !info.IsResource || a.lasting {
		return
	}
	if t.WantsRequest() && r.Body != nil && r.Method != http.MethodGet {
		a.request, a.media = &bytes.Buffer{}, r.Header.Get("Content-Type")
		r.Body = struct {
			io.Reader
			io.Closer
		}{io.TeeReader(r.Body, a.request), r.Body}
	}
	if t.WantsResponse() {
		a.response = &bytes.Buffer{}
		r.Header.Del("Accept-Encoding") // the log shall have the answer itself
	}
}

// endAudit reports how a request ended.
func (r *recorder) endAudit(panicked bool) {
	a := r.audited
	if a == nil {
		return
	}
	e := audit.End{Code: r.code, Status: a.status, Panicked: panicked}
	if e.Code == 0 {
		e.Code = http.StatusOK
	}
	if a.request != nil {
		e.Request = asJSON(a.request.Bytes(), a.media)
	}
	if a.response != nil {
		e.Response = asJSON(a.response.Bytes(), r.Header().Get("Content-Type"))
	}
	a.trail.Complete(e)
}

// trailOf is the trail of the request that w answers; nil is none.
func trailOf(w http.ResponseWriter) *audit.Trail {
	if rec, ok := w.(*recorder); ok && rec.audited != nil {
		return rec.audited.trail
	}
	return nil
}

// asJSON returns a body as JSON; nil if it cannot be read.
func asJSON(b []byte, contentType string) []byte {
	media, ok := codec.MediaType(contentType)
	switch {
	case len(b) == 0:
		return nil
	case ok && media == codec.YAML:
		out, err := yaml.YAMLToJSON(b)
		if err != nil {
			return nil
		}
		return out
	case ok && media == codec.CBOR, strings.HasSuffix(media, "+cbor"):
		out, err := codec.CBORToJSON(b)
		if err != nil {
			return nil
		}
		return out
	case ok && media == codec.Protobuf:
		obj, _, err := scheme.Codecs.UniversalDeserializer().Decode(b, nil, nil)
		if err != nil {
			return nil
		}
		out, err := watchcache.EncodeJSON(obj)
		if err != nil {
			return nil
		}
		return out
	}
	if bytes.HasPrefix(bytes.TrimSpace(b), []byte("{")) || bytes.HasPrefix(bytes.TrimSpace(b), []byte("[")) {
		return b
	}
	out, err := yaml.YAMLToJSON(b) // server-side apply sends YAML
	if err != nil {
		return nil
	}
	return out
}
