package server

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// checks are the agent's health checks, in the order in which they are shown.
type checks struct {
	list []check
	mu   sync.Mutex
}

type check struct {
	name  string
	run   func() error
	ended map[string]float64 // how often, by result; guarded by mu of checks
}

// newChecks names them as kubelets do; alive tells whether the agent still works.
func newChecks(alive func() error) *checks {
	fine := func() error { return nil }
	if alive == nil {
		alive = fine
	}
	c := &checks{list: []check{{name: "ping", run: fine}, {name: "log", run: fine}, {name: "syncloop", run: alive}}}
	for i := range c.list {
		c.list[i].ended = map[string]float64{}
	}
	return c
}

// run makes the checks of that name, or all for none, and counts how they end.
func (c *checks) run(name string, each func(name string, err error)) {
	for i := range c.list {
		k := &c.list[i]
		if name != "" && name != k.name {
			continue
		}
		err, result := k.run(), "success"
		if err != nil {
			result = "error"
		}
		c.mu.Lock()
		k.ended[result]++
		c.mu.Unlock()
		each(k.name, err)
	}
}

// handler answers one check, or all for no name: ok, or what failed.
func (c *checks) handler(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var text strings.Builder
		var failed error
		c.run(name, func(name string, err error) {
			if err == nil {
				fmt.Fprintf(&text, "[+]%s ok\n", name)
				return
			}
			failed = err
			fmt.Fprintf(&text, "[-]%s failed: %v\n", name, err)
		})
		if failed != nil {
			http.Error(w, text.String()+"healthz check failed", http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if _, verbose := r.URL.Query()["verbose"]; verbose {
			fmt.Fprint(w, text.String()+"healthz check passed\n")
			return
		}
		fmt.Fprint(w, "ok")
	}
}

// install adds the paths of the checks to mux.
func (c *checks) install(mux *http.ServeMux) {
	mux.HandleFunc("GET /healthz", c.handler(""))
	for i := range c.list {
		mux.HandleFunc("GET /healthz/"+c.list[i].name, c.handler(c.list[i].name))
	}
}

// metrics makes all checks and answers their results, now and since the start.
func (c *checks) metrics(w http.ResponseWriter, _ *http.Request) {
	var e exposition
	c.run("", func(name string, err error) {
		good := 1.0
		if err != nil {
			good = 0
		}
		e.add("kubernetes_healthcheck", "gauge", "This metric records the result of a single healthcheck.", &good, time.Time{}, "name", name, "type", "healthz")
	})
	c.mu.Lock()
	for i := range c.list {
		for _, result := range []string{"error", "success"} {
			n, known := c.list[i].ended[result]
			if known {
				e.add("kubernetes_healthchecks_total", "counter", "This metric records the results of all healthcheck.", &n, time.Time{}, "name", c.list[i].name, "status", result, "type", "healthz")
			}
		}
	}
	c.mu.Unlock()
	w.Header().Set("Content-Type", textFormat)
	_ = e.write(w) // the client is gone
}

// ServeHealth answers the health checks alone, to everybody, on l until ctx ends.
func (s *Server) ServeHealth(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	s.health.install(mux)
	return s.serve(ctx, l, mux)
}
