package server

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/util/proxy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// exec streams a command's input and output by way of the runtime's own
// streaming server.
func (s *Server) exec(w http.ResponseWriter, r *http.Request) {
	id, ok := s.runningContainer(w, r)
	if !ok {
		return
	}
	q := r.URL.Query()
	req := &runtimeapi.ExecRequest{ContainerId: id, Cmd: q["command"], Stdin: on(q, "input", "stdin"), Tty: on(q, "tty"),
		Stdout: on(q, "output", "stdout"), Stderr: on(q, "error", "stderr") && !on(q, "tty")}
	if len(req.Cmd) == 0 {
		http.Error(w, "you must specify at least one command for the container", http.StatusBadRequest)
		return
	}
	if !req.Stdin && !req.Stdout && !req.Stderr {
		http.Error(w, "you must specify at least 1 of stdin, stdout, stderr", http.StatusBadRequest)
		return
	}
	resp, err := s.cfg.CRI.Runtime.Exec(r.Context(), req)
	s.forward(w, r, resp.GetUrl(), err)
}

func (s *Server) attach(w http.ResponseWriter, r *http.Request) {
	id, ok := s.runningContainer(w, r)
	if !ok {
		return
	}
	q := r.URL.Query()
	req := &runtimeapi.AttachRequest{ContainerId: id, Stdin: on(q, "input", "stdin"), Tty: on(q, "tty"),
		Stdout: on(q, "output", "stdout"), Stderr: on(q, "error", "stderr") && !on(q, "tty")}
	if !req.Stdin && !req.Stdout && !req.Stderr {
		http.Error(w, "you must specify at least 1 of stdin, stdout, stderr", http.StatusBadRequest)
		return
	}
	resp, err := s.cfg.CRI.Runtime.Attach(r.Context(), req)
	s.forward(w, r, resp.GetUrl(), err)
}

func (s *Server) portForward(w http.ResponseWriter, r *http.Request) {
	pod, v, _, ok := s.target(w, r)
	if !ok {
		return
	}
	sandbox := v.Ready()
	if sandbox == nil {
		http.Error(w, fmt.Sprintf("pod %q has no running sandbox", pod.Name), http.StatusNotFound)
		return
	}
	req := &runtimeapi.PortForwardRequest{PodSandboxId: sandbox.Id}
	q := r.URL.Query()
	for _, t := range append(q["port"], q["ports"]...) {
		n, err := strconv.ParseUint(t, 10, 16)
		if err != nil || n == 0 {
			http.Error(w, fmt.Sprintf("invalid port %q", t), http.StatusBadRequest)
			return
		}
		req.Port = append(req.Port, int32(n))
	}
	resp, err := s.cfg.CRI.Runtime.PortForward(r.Context(), req)
	s.forward(w, r, resp.GetUrl(), err)
}

// run executes a command without streaming and answers its output: "cmd" with its
// words divided by spaces, or "command" once for each word, as exec has it. A command
// that fails is answered with an error, which shows what it wrote.
func (s *Server) run(w http.ResponseWriter, r *http.Request) {
	id, ok := s.runningContainer(w, r)
	if !ok {
		return
	}
	cmd := strings.Fields(r.URL.Query().Get("cmd"))
	if len(cmd) == 0 {
		cmd = r.URL.Query()["command"]
	}
	if len(cmd) == 0 {
		http.Error(w, "you must specify at least one command for the container", http.StatusBadRequest)
		return
	}
	resp, err := s.cfg.CRI.Runtime.ExecSync(r.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: cmd})
	if err != nil {
		http.Error(w, status.Convert(err).Message(), http.StatusInternalServerError)
		return
	}
	if resp.ExitCode != 0 {
		w.WriteHeader(http.StatusInternalServerError)
	}
	_, _ = w.Write(append(resp.Stdout, resp.Stderr...))
}

func (s *Server) runningContainer(w http.ResponseWriter, r *http.Request) (string, bool) {
	_, v, name, ok := s.target(w, r)
	if !ok {
		return "", false
	}
	c := v.Latest(name)
	if !c.Running() {
		http.Error(w, fmt.Sprintf("container not found (%q)", name), http.StatusNotFound)
		return "", false
	}
	return c.Id, true
}

func on(q url.Values, names ...string) bool {
	for _, n := range names {
		if b, err := strconv.ParseBool(q.Get(n)); err == nil && b {
			return true
		}
	}
	return false
}

// forward joins the client's connection with the runtime's streaming server.
func (s *Server) forward(w http.ResponseWriter, r *http.Request, target string, err error) {
	if err != nil {
		http.Error(w, status.Convert(err).Message(), http.StatusInternalServerError)
		return
	}
	u, err := url.Parse(target)
	if err != nil {
		http.Error(w, fmt.Sprintf("the runtime answered the streaming address %q: %v", target, err), http.StatusInternalServerError)
		return
	}
	h := proxy.NewUpgradeAwareHandler(u, http.DefaultTransport, false, true, responder{})
	h.ServeHTTP(w, r)
}

type responder struct{}

// Error implements proxy.ErrorResponder.
func (responder) Error(w http.ResponseWriter, _ *http.Request, err error) {
	http.Error(w, err.Error(), http.StatusInternalServerError)
}
