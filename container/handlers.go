package container

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/container/oci"
	"knarr.dev/knarr/container/oci/external"
)

// ownHandler is the name of what runs containers by default.
const ownHandler = "knarr"

// executor is what runs the containers of a RuntimeClass handler.
func (s *Server) executor(handler string) (oci.Executor, error) {
	if handler == "" || handler == ownHandler {
		return s.launcher, nil
	}
	r := s.external[handler]
	if r == nil {
		return nil, fmt.Errorf("%w: no runtime for %q is configured: name one of %v, or add it to the configuration's runtimes", errInvalid, handler, s.handlerNames())
	}
	if !r.Installed() {
		return nil, fmt.Errorf("%w: no runtime for %q is configured: its program %s is not installed", errInvalid, handler, s.cfg.Handlers[handler].Path)
	}
	return r, nil
}

// unknownHandler stands for a handler that is configured no more, so that what it ran
// can be stopped and removed.
func (s *Server) unknownHandler(name string) oci.Executor {
	if r := s.external[name]; r != nil {
		return r
	}
	return external.New(name, external.Config{Path: name}, filepath.Join(s.cfg.Run, "oci"), filepath.Join(s.cfg.Run, "c"), s.launcher)
}

func (s *Server) handlerNames() []string {
	return append([]string{ownHandler}, slices.Sorted(maps.Keys(s.external))...)
}

// askAfter is when programs are asked for what they can do: some take a tenth of a
// second to answer, and a node that starts has better things to do.
const askAfter = 3 * time.Second

// handlers describes those whose programs are there. What these can do is not known at
// once.
func (s *Server) handlers() []*runtimeapi.RuntimeHandler {
	var list []*runtimeapi.RuntimeHandler
	for _, name := range slices.Sorted(maps.Keys(s.external)) {
		if r := s.external[name]; r.Installed() {
			f, known := r.Known()
			if !known && s.asking.CompareAndSwap(false, true) {
				s.work.Go(s.ask)
			}
			list = append(list, &runtimeapi.RuntimeHandler{Name: name, Features: &runtimeapi.RuntimeHandlerFeatures{
				RecursiveReadOnlyMounts: f.RecursiveReadOnly, UserNamespaces: r.Users() && s.shifts(),
			}})
		}
	}
	return list
}

// ask has the programs asked for what they can do.
func (s *Server) ask() {
	defer s.asking.Store(false)
	later := time.NewTimer(askAfter)
	defer later.Stop()
	select {
	case <-later.C:
	case <-s.life.Done():
		return
	}
	for _, r := range s.external {
		r.Features(s.life)
	}
}
