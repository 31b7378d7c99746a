package aggregate

import (
	"net/http"
	"net/url"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/httpstream"
	utilproxy "k8s.io/apimachinery/pkg/util/proxy"
)

// Headers in which the extension server learns who asks.
const (
	userHeader  = "X-Remote-User"
	uidHeader   = "X-Remote-Uid"
	groupHeader = "X-Remote-Group"
	extraHeader = "X-Remote-Extra-"
)

// Serves tells whether an extension server serves a path.
func (a *Aggregator) Serves(path string) bool { return a.find(path) != nil }

// find returns the extension server of /apis/GROUP/VERSION and all below, or nil.
func (a *Aggregator) find(path string) *remote {
	t := *a.table.Load()
	if len(t) == 0 {
		return nil
	}
	rest, ok := strings.CutPrefix(path, "/apis/")
	if !ok {
		return nil
	}
	group, rest, _ := strings.Cut(rest, "/")
	version, _, _ := strings.Cut(rest, "/")
	return t[schema.GroupVersion{Group: group, Version: version}]
}

// Serve passes a request that Serves says yes to on, in the user's name. fail
// answers for a server that cannot be reached.
func (a *Aggregator) Serve(w http.ResponseWriter, r *http.Request, user *authenticationv1.UserInfo, fail func(message string)) {
	to := a.find(r.URL.Path)
	if to == nil || !to.available {
		fail("service unavailable")
		return
	}
	target := to.base()
	target.Path, target.RawPath, target.RawQuery = r.URL.Path, r.URL.RawPath, r.URL.RawQuery
	out := r.Clone(r.Context())
	identify(out.Header, user)
	h := utilproxy.NewUpgradeAwareHandler(target, to.transport, true, httpstream.IsUpgradeRequest(r), responder(func(err error) {
		a.Log.Warn("an extension server could not be reached", "name", to.service.Name, "verb", r.Method, "path", r.URL.Path, "error", err)
		a.recheck(to.service.Name)
		fail("error trying to reach service: " + err.Error())
	}))
	h.UseLocationHost = true
	h.ServeHTTP(w, out)
}

// identify replaces the headers that say who asks.
func identify(h http.Header, user *authenticationv1.UserInfo) {
	for name := range h {
		if strings.HasPrefix(name, "X-Remote-") {
			h.Del(name)
		}
	}
	h.Del("Authorization")
	h.Set(userHeader, user.Username)
	if user.UID != "" {
		h.Set(uidHeader, user.UID)
	}
	for _, g := range user.Groups {
		h.Add(groupHeader, g)
	}
	for key, values := range user.Extra {
		for _, v := range values {
			h.Add(extraHeader+url.PathEscape(key), v)
		}
	}
}

// recheck looks whether an extension server that failed is still available.
func (a *Aggregator) recheck(name string) {
	a.mu.Lock()
	if r := a.state[name]; r != nil {
		r.checked = ""
	}
	a.mu.Unlock()
	a.nudge()
}

type responder func(error)

func (f responder) Error(_ http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() == nil {
		f(err)
	}
}
