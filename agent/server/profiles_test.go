package server

import (
	"net/http"
	"strings"
	"testing"
)

// Profiles are for those who may use the kubelet API, and for nobody else.
func TestProfiles(t *testing.T) {
	f := serve(t)
	if code, body := f.get(t, "/debug/pprof/goroutine?debug=1"); code != http.StatusOK || !strings.HasPrefix(body, "goroutine profile: total ") {
		t.Errorf("goroutine profile: %d %.100s", code, body)
	}
	f.denied = true
	for _, path := range []string{"/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/cmdline"} {
		if code, _ := f.get(t, path); code != http.StatusForbidden {
			t.Errorf("%s without permission: %d", path, code)
		}
	}
}
