package apiserver

import (
	"io"
	"net/http"
	"net/url"
	"strconv"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"knarr.dev/knarr/apiserver/auth"
)

// What a list costs: a seat for so many objects, and no more seats than that.
const (
	objectsPerSeat = 100
	maxSeats       = 10
)

// seat takes the seats that a request needs, waiting if it must; false if it got
// none, and was answered.
func (s *Server) seat(w *recorder, r *http.Request, a *auth.Action, info *requestInfo) bool {
	if lasting(info) {
		return true
	}
	class := s.flow.Classify(a)
	h := w.Header()
	h["X-Kubernetes-Pf-Flowschema-Uid"] = []string{string(class.SchemaUID)}
	h["X-Kubernetes-Pf-Prioritylevel-Uid"] = []string{string(class.LevelUID)}
	seats := 1
	if !class.Exempt() && info.IsResource && (info.Verb == "list" || info.Verb == "watch") {
		seats = s.width(r, info)
	}
	grant, err := s.flow.Begin(r.Context(), class, a, seats)
	if err != nil {
		h.Set("Content-Type", "text/plain; charset=utf-8")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Retry-After", "1")
		w.WriteHeader(http.StatusTooManyRequests)
		_, _ = io.WriteString(w, "Too many requests, please try again later.\n") // who has gone misses it
		return false
	}
	w.seats, w.watch = grant, info.Verb == "watch"
	return true
}

// lasting tells the connections that stay open for as long as their users like:
// they take no seats.
func lasting(info *requestInfo) bool {
	switch info.Subresource {
	case "":
		return false
	case "exec", "attach", "portforward", "proxy", "log":
		return info.IsResource
	}
	return false
}

// width estimates how many seats a list needs, by the number of its objects.
func (s *Server) width(r *http.Request, info *requestInfo) int {
	res := s.reg.Resource(schema.GroupVersionResource{Group: info.Group, Version: info.Version, Resource: info.Resource})
	if res == nil || info.selected {
		return 1
	}
	n := res.Cache.Len()
	if r.URL.RawQuery != "" {
		if q, err := url.ParseQuery(r.URL.RawQuery); err == nil {
			if info.Verb == "watch" && q.Get("resourceVersion") != "" && q.Get("resourceVersion") != "0" {
				return 1 // it begins with nothing
			}
			if limit, err := strconv.Atoi(q.Get("limit")); err == nil && limit > 0 {
				n = min(n, limit)
			}
		}
	}
	return min(maxSeats, max(1, (n+objectsPerSeat-1)/objectsPerSeat))
}
