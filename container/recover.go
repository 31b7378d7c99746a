package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/container/image"
	"knarr.dev/knarr/container/log"
	"knarr.dev/knarr/container/oci"
	"knarr.dev/knarr/container/sandbox"
)

// recover takes up what the records and the holder tell of an earlier process.
func (s *Server) recover(ctx context.Context) error {
	if err := s.recoverPods(); err != nil {
		return err
	}
	entries, err := os.ReadDir(filepath.Join(s.cfg.Root, "containers"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		c := &container{exited: make(chan struct{})}
		err := load(s.containerRecord(e.Name()), &c.containerRecord)
		c.pod = s.pods[c.Pod]
		if errors.Is(err, os.ErrNotExist) || err == nil && c.pod == nil {
			// Creation was not finished, or removal was not.
			err = os.RemoveAll(s.containerDir(e.Name()))
			if err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		if c.Unfinished {
			c.group = s.layout.Group(c.Cgroup)
			if err := s.clear(ctx, c); err != nil {
				return err
			}
			continue
		}
		s.recoverContainer(ctx, c)
	}
	for _, p := range s.listPods() {
		if p.Unfinished {
			if err := s.removePod(ctx, p); err != nil {
				return err
			}
		}
	}
	return errors.Join(s.dropUnknown(), s.dropFolders())
}

// dropFolders removes what has no record any more, or never had one.
func (s *Server) dropFolders() error {
	var errs []error
	each := func(dir string, drop func(name string) error) {
		entries, err := os.ReadDir(dir)
		errs = append(errs, err)
		for _, e := range entries {
			errs = append(errs, drop(e.Name()))
		}
	}
	each(filepath.Join(s.cfg.Run, "ns"), func(id string) error {
		if s.pods[id] != nil {
			return nil
		}
		return sandbox.Remove(s.nsDir(id))
	})
	each(filepath.Join(s.cfg.Root, "pods"), func(name string) error {
		if id, _, _ := strings.Cut(name, "."); s.pods[id] != nil && !strings.HasSuffix(name, ".tmp") {
			return nil
		}
		return os.RemoveAll(filepath.Join(s.cfg.Root, "pods", name))
	})
	each(filepath.Join(s.cfg.Run, "c"), func(id string) error {
		if s.containers[id] != nil {
			return nil
		}
		return os.RemoveAll(s.pipeDir(id))
	})
	each(filepath.Join(s.cfg.Run, "oci", "x"), func(name string) error {
		return os.RemoveAll(filepath.Join(s.cfg.Run, "oci", "x", name))
	})
	return errors.Join(errs...)
}

func (s *Server) recoverPods() error {
	files, err := filepath.Glob(filepath.Join(s.cfg.Root, "pods", "*.json"))
	if err != nil {
		return err
	}
	for _, f := range files {
		p := &pod{}
		if err := load(f, &p.podRecord); err != nil {
			return err
		}
		p.spaces = sandbox.Find(s.nsDir(p.ID))
		if p.executor, err = s.executor(p.Handler); err != nil {
			// Its containers can still be removed, as everything but the program is known.
			p.executor = s.unknownHandler(p.Handler)
		}
		if p.users, err = users(p.options()); err != nil {
			return fmt.Errorf("sandbox %s: %w", p.ID, err)
		}
		if p.users != nil {
			p.users.Path = p.spaces.Users
		}
		alive := p.Boot == s.boot
		if p.Pause.PID != 0 && alive {
			child, err := oci.Find(p.Pause.PID, p.Pause.Start)
			if alive = err == nil; alive {
				p.pause = child
			}
		}
		released := p.spaces.Network == "" && p.options().GetNetwork() != runtimeapi.NamespaceMode_NODE
		if !alive || released {
			p.Ready = false // though the record may not have been written
		}
		s.pods[p.ID] = p
		s.names[podName(p.config().GetMetadata())] = p.ID
	}
	return nil
}

func (s *Server) recoverContainer(ctx context.Context, c *container) {
	c.group = s.layout.Group(c.Cgroup)
	img, err := s.images.Get(c.ImageID)
	if err != nil {
		img = &image.Image{ID: c.ImageID} // removed by hand; only a start would miss it
	}
	c.image = img
	s.containers[c.ID] = c
	s.names[containerName(c.pod, c.config().GetMetadata())] = c.ID
	switch {
	case !c.Finished.IsZero():
		close(c.exited)
	case c.Started.IsZero():
		s.recoverUnstarted(ctx, c)
	default:
		if err := s.takeUp(c); err != nil {
			s.cfg.Log.Warn("a container's end was not seen", "container", c.ID, "reason", err)
			c.output = nil
			s.finish(c, oci.UnknownExit, s.cfg.Now())
		}
	}
}

// recoverUnstarted deals with a container whose record knows no start. Were we
// killed in the middle of one, its process may run, unrecorded: it is ended.
func (s *Server) recoverUnstarted(ctx context.Context, c *container) {
	if err := c.group.KillEach(); err != nil { // it may be started yet
		s.cfg.Log.Warn("killing a half-started container", "container", c.ID, "error", err)
	}
	if err := errors.Join(s.forget(ctx, c), s.holder.Drop(c.ID)); err != nil {
		s.cfg.Log.Warn("letting go of a half-started container", "container", c.ID, "error", err)
	}
}

// takeUp follows a container that an earlier process started.
func (s *Server) takeUp(c *container) error {
	if c.Boot != s.boot {
		return errors.New("the machine has been started anew since")
	}
	files, err := s.holder.Get(c.ID)
	if err != nil {
		child, ferr := oci.Find(c.Process.PID, c.Process.Start)
		if ferr != nil {
			return errors.Join(err, ferr)
		}
		c.child = child // it runs, but its output can only be had by its FIFOs
	} else {
		c.child, err = oci.Adopt(c.Process.PID, c.Process.Start, files[0])
		if err != nil {
			return err
		}
		files = files[1:]
	}
	if err := s.launcher.Follow(c.child); err != nil {
		s.cfg.Log.Warn("a container's exit code will not be known", "container", c.ID, "reason", err)
	}
	w, err := log.Open(c.LogPath, s.cfg.Now)
	if err != nil {
		return err
	}
	o := &output{log: w, tty: c.TTY, done: make(chan struct{}), attached: map[*attachment]struct{}{}}
	c.output = o
	if c.TTY {
		if len(files) == 1 {
			master, err := pollable(files[0])
			if err != nil {
				return err
			}
			o.attachConsole(master)
		}
	} else if err := s.reopenPipes(c, o, files); err != nil {
		return err
	}
	s.follow(c)
	return nil
}

func (s *Server) reopenPipes(c *container, o *output, held []*os.File) (err error) {
	dir := s.pipeDir(c.ID)
	for i, end := range []struct {
		name string
		at   **os.File
	}{{"out", &o.out}, {"err", &o.err}} {
		if i < len(held) {
			if *end.at, err = pollable(held[i]); err != nil {
				return err
			}
			continue
		}
		if *end.at, err = os.OpenFile(filepath.Join(dir, end.name), os.O_RDONLY|nonblock, 0); err != nil {
			return fmt.Errorf("opening the output of a container: %w", err)
		}
	}
	if c.config().GetStdin() {
		// Fails when the container has closed its input: then there is none.
		o.in, _ = os.OpenFile(filepath.Join(dir, "in"), os.O_WRONLY|nonblock, 0)
	}
	return nil
}

// dropUnknown lets go of what the holder keeps for containers that are no more.
func (s *Server) dropUnknown() error {
	keys, err := s.holder.List()
	if err != nil {
		return err
	}
	for _, k := range keys {
		id, _, _ := strings.Cut(k, ".")
		if s.containers[id] == nil {
			if err := s.holder.Drop(k); err != nil {
				return err
			}
		}
	}
	return nil
}
