package cmd

import (
	"net/http/httptest"
	"strings"
	"testing"
)

func TestKubeletAccess(t *testing.T) {
	for request, want := range map[string]string{
		"GET /stats/summary":       "get stats",
		"GET /metrics/cadvisor":    "get metrics",
		"GET /logs/syslog":         "get log",
		"GET /pods":                "get pods proxy",
		"GET /configz":             "get configz proxy",
		"POST /exec/ns/pod/c":      "create proxy",
		"GET /containerLogs/n/p/c": "get proxy",
		"GET /statsx":              "get proxy",
		"GET /debug/pprof/":        "get proxy",
		"DELETE /anything":         "delete proxy",
	} {
		method, path, _ := strings.Cut(request, " ")
		verb, subs := kubeletAccess(httptest.NewRequest(method, path, nil))
		if got := verb + " " + strings.Join(subs, " "); got != want {
			t.Errorf("%s: %s, want %s", request, got, want)
		}
	}
}
