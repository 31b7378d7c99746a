package server

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"

	"knarr.dev/knarr/agent/logs"
	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/agent/view"
)

// containerLogs copies a container's log.
func (s *Server) containerLogs(w http.ResponseWriter, r *http.Request) {
	pod, v, name, ok := s.target(w, r)
	if !ok {
		return
	}
	opts, previous, err := logOptions(r, s.cfg.Clock.Now())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if podspec.Find(pod, name) == nil {
		http.Error(w, fmt.Sprintf("container %q not found in pod %q", name, pod.Name), http.StatusNotFound)
		return
	}
	c, err := choose(pod, v, name, previous)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	uid, id := string(pod.UID), c.Id
	src := logs.Source{
		Path:    filepath.Join(podspec.LogDir(s.cfg.LogRoot, pod.Namespace, pod.Name, uid), podspec.LogPath(name, c.Restarts())),
		Watcher: &s.watcher,
		Ended: func() bool {
			_, v, ok := s.cfg.Find(pod.Namespace, pod.Name, uid)
			return !ok || !v.ByID(id).Running()
		},
		Changed: func() <-chan struct{} { return s.cfg.Changed(uid) },
	}
	out := &lazy{w: w}
	flush := func() {
		out.begin()
		_ = http.NewResponseController(w).Flush()
	}
	if err := logs.Copy(r.Context(), src, opts, out, flush); err != nil && !out.begun {
		http.Error(w, fmt.Sprintf("failed to read the log of container %q in pod %q: %v", name, pod.Name, err), http.StatusInternalServerError)
	}
	out.begin()
}

// lazy sends the header with the first byte, so that an early failure can still
// be told by its status.
type lazy struct {
	w     http.ResponseWriter
	begun bool
}

func (l *lazy) begin() {
	if !l.begun {
		l.begun = true
		l.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		l.w.WriteHeader(http.StatusOK)
	}
}

func (l *lazy) Write(p []byte) (int, error) {
	l.begin()
	return l.w.Write(p)
}

// choose picks the container whose log is asked for: the newest that was ever
// started, or the one before it.
func choose(pod *corev1.Pod, v *view.Pod, name string, previous bool) (*view.Container, error) {
	var started []*view.Container
	for _, c := range v.Containers[name] {
		if c.Running() || c.Exited() {
			started = append(started, c)
		}
	}
	if previous {
		if len(started) == 2 || len(started) > 2 {
			return started[1], nil
		}
		return nil, fmt.Errorf("previous terminated container %q in pod %q not found", name, pod.Name)
	}
	if len(started) > 0 {
		return started[0], nil
	}
	reason := "ContainerCreating"
	for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for _, st := range list {
			if st.Name == name && st.State.Waiting != nil && st.State.Waiting.Reason != "" {
				reason = st.State.Waiting.Reason
			}
		}
	}
	switch reason {
	case "ErrImagePull", "ImagePullBackOff":
		return nil, fmt.Errorf("container %q in pod %q is waiting to start: trying and failing to pull image", name, pod.Name)
	}
	return nil, fmt.Errorf("container %q in pod %q is waiting to start: %s", name, pod.Name, reason)
}

// logOptions reads the query of a log request.
func logOptions(r *http.Request, now time.Time) (o logs.Options, previous bool, err error) {
	q := r.URL.Query()
	flag := func(name string) bool {
		v, e := strconv.ParseBool(q.Get(name))
		return e == nil && v
	}
	number := func(name string) (int64, bool) {
		t := q.Get(name)
		if t == "" {
			return 0, false
		}
		n, e := strconv.ParseInt(t, 10, 64)
		if e != nil || n < 0 {
			err = fmt.Errorf("invalid %s %q: must be a whole number of at least 0", name, t)
		}
		return n, true
	}
	o = logs.Options{Follow: flag("follow"), Timestamps: flag("timestamps"), Tail: -1}
	if n, ok := number("tailLines"); ok {
		o.Tail = n
	}
	if n, ok := number("limitBytes"); ok {
		o.Limit = n
	}
	if n, ok := number("sinceSeconds"); ok {
		o.Since = now.Add(-time.Duration(n) * time.Second)
	}
	if t := q.Get("sinceTime"); t != "" {
		var e error
		if o.Since, e = time.Parse(time.RFC3339, t); e != nil {
			err = fmt.Errorf("invalid sinceTime %q: must be a time like 2006-01-02T15:04:05Z", t)
		}
	}
	switch q.Get("stream") {
	case "Stdout":
		o.Stream = "stdout"
	case "Stderr":
		o.Stream = "stderr"
	}
	return o, flag("previous"), err
}
