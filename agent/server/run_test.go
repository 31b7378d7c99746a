package server

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ExecSync writes down what it was asked: "fail" fails, "break" is not answered.
func (r fakeRuntime) ExecSync(_ context.Context, req *runtimeapi.ExecSyncRequest, _ ...grpc.CallOption) (*runtimeapi.ExecSyncResponse, error) {
	resp := &runtimeapi.ExecSyncResponse{Stdout: []byte(req.ContainerId + ":" + strings.Join(req.Cmd, "|")), Stderr: []byte("!")}
	switch req.Cmd[0] {
	case "fail":
		resp.ExitCode = 3
	case "break":
		return nil, status.Error(codes.Unavailable, "the runtime is away")
	}
	return resp, nil
}

// A command is run in the container that runs now, and answered with all that it
// wrote.
func TestRun(t *testing.T) {
	f := serve(t)
	for _, c := range []struct {
		name, path string
		code       int
		text       string
	}{
		{"a command", "/run/n/p/c?cmd=ls", http.StatusOK, "c1:ls!"},
		{"words", "/run/n/p/c?cmd=ls+-l++/x", http.StatusOK, "c1:ls|-l|/x!"},
		{"words as exec has them", "/run/n/p/c?command=ls&command=a+b", http.StatusOK, "c1:ls|a b!"},
		{"with the pod's identity", "/run/n/p/u/c?cmd=ls", http.StatusOK, "c1:ls!"},
		{"it fails", "/run/n/p/c?cmd=fail", http.StatusInternalServerError, "c1:fail!"},
		{"the runtime fails", "/run/n/p/c?cmd=break", http.StatusInternalServerError, "the runtime is away\n"},
		{"no command", "/run/n/p/c", http.StatusBadRequest, "you must specify at least one command for the container\n"},
		{"a container that does not run", "/run/n/p/w?cmd=ls", http.StatusNotFound, "container not found (\"w\")\n"},
		{"a container that is not there", "/run/n/p/x?cmd=ls", http.StatusNotFound, ""},
		{"a pod that is not there", "/run/n/q/c?cmd=ls", http.StatusNotFound, ""},
	} {
		if code, text := f.post(t, c.path); code != c.code || c.text != "" && text != c.text {
			t.Errorf("%s: %d %q, want %d %q", c.name, code, text, c.code, c.text)
		}
	}
	if code, text := f.get(t, "/run/n/p/c?cmd=ls"); code != http.StatusMethodNotAllowed {
		t.Errorf("GET: %d %q", code, text)
	}
	f.denied = true
	if code, _ := f.post(t, "/run/n/p/c?cmd=ls"); code != http.StatusForbidden {
		t.Errorf("without permission: %d", code)
	}
}
