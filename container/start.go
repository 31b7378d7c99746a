package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/container/oci"
)

// StartContainer runs the container's command.
func (s *Server) StartContainer(ctx context.Context, req *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	c, err := s.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	c.op.Lock()
	defer c.op.Unlock()
	c.mu.RLock()
	state := c.state()
	c.mu.RUnlock()
	if c.gone || state != runtimeapi.ContainerState_CONTAINER_CREATED {
		return nil, fmt.Errorf("%w: container %s is %s, only a created one can be started", errState, c.ID, state)
	}
	if err := s.start(ctx, c); err != nil {
		return nil, s.startFailed(c, err)
	}
	s.emit(runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT, c.ID, c.pod)
	s.follow(c)
	return &runtimeapi.StartContainerResponse{}, nil
}

// startFailed records why a container never ran, as an exit.
func (s *Server) startFailed(c *container, err error) error {
	code := 128
	var start *oci.StartError
	if errors.As(err, &start) {
		code = start.ExitCode()
	}
	c.mu.Lock()
	c.ExitCode, c.Reason, c.Message = int32(code), "StartError", err.Error()
	c.Started, c.Finished = time.Unix(0, 0), s.cfg.Now()
	c.mu.Unlock()
	close(c.exited)
	saved := save(s.containerRecord(c.ID), &c.containerRecord)
	return errors.Join(fmt.Errorf("failed to start container %q: %w", c.ID, err), saved)
}

func (s *Server) start(ctx context.Context, c *container) error {
	spec, err := s.spec(c)
	if err != nil {
		return err
	}
	out, stdio, err := s.openOutput(c)
	if err != nil {
		return err
	}
	s.at("container: output opened")
	var child *oci.Child
	if err = s.writeBundle(spec, c); err == nil {
		child, err = c.pod.executor.Start(ctx, spec, stdio, c.group)
	}
	closeAll(stdio.In, stdio.Out, stdio.Err)
	if err != nil {
		out.close()
		return errors.Join(err, s.unhook(context.WithoutCancel(ctx), c))
	}
	s.at("container: process started")
	c.mu.Lock()
	c.child, c.output = child, out
	c.Process, c.Started = process{child.PID, child.StartTime}, s.cfg.Now()
	c.mu.Unlock()
	held := []*os.File{child.File()}
	if child.Console != nil {
		out.attachConsole(child.Console)
		child.Console = nil
	}
	held = append(held, out.held()...)
	err = s.holder.Put(c.ID, held...)
	s.at("container: descriptors held")
	if err := errors.Join(err, save(s.containerRecord(c.ID), &c.containerRecord)); err != nil {
		// Without these it could not be taken up again.
		err = errors.Join(err, c.group.Kill())
		_, waited := child.Wait(context.WithoutCancel(ctx))
		c.release()
		return errors.Join(err, waited, s.unhook(context.WithoutCancel(ctx), c))
	}
	s.at("container: started")
	return nil
}

// unhook ends what the hooks of a container left in its group, and runs its poststop
// hooks. Its first process is dead. The executor knows it no more afterwards.
func (s *Server) unhook(ctx context.Context, c *container) error {
	if c.Hooks == nil {
		return nil
	}
	if err := c.group.Kill(); err != nil {
		return err
	}
	return s.forget(ctx, c)
}

func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// follow writes the container's output to its log and waits for its end.
func (s *Server) follow(c *container) {
	c.mu.RLock()
	child, out := c.child, c.output
	c.mu.RUnlock()
	out.run(&s.work, s.cfg.Log)
	s.work.Go(func() {
		code, err := child.Wait(s.life)
		if s.life.Err() != nil {
			return // we end, not the container
		}
		if err != nil {
			s.cfg.Log.Error("waiting for a container", "container", c.ID, "error", err)
		}
		s.finish(c, code, s.cfg.Now())
	})
}

// finish records the end of a container's first process and ends its others.
func (s *Server) finish(c *container, code int, at time.Time) {
	oom := c.group.OOMKills() > 0
	if err := c.group.Kill(); err != nil {
		s.cfg.Log.Error("killing what a container left", "container", c.ID, "error", err)
	}
	s.at("container: processes killed")
	if c.output != nil {
		c.output.drain(s.life)
	}
	s.at("container: output read")
	if err := s.unhook(s.life, c); err != nil {
		s.cfg.Log.Error("after a container's end", "container", c.ID, "error", err)
	}
	if c.Hooks != nil && s.life.Err() != nil {
		return // the hooks may not have been run: our successor sees to the end
	}
	c.mu.Lock()
	c.ExitCode, c.Finished = int32(code), at
	switch {
	case oom:
		c.Reason = "OOMKilled"
	case code == 0:
		c.Reason = "Completed"
	default:
		c.Reason = "Error"
	}
	c.mu.Unlock()
	err := save(s.containerRecord(c.ID), &c.containerRecord)
	s.at("container: end noted")
	if err != nil { // the disk may be full: our successor learns of the end from the pidfd
		s.cfg.Log.Error("recording a container's end", "container", c.ID, "error", err)
	} else if err := s.holder.Drop(c.ID); err != nil {
		s.cfg.Log.Error("letting go of a container's descriptors", "container", c.ID, "error", err)
	}
	s.at("container: ended")
	close(c.exited)
	s.emit(runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, c.ID, c.pod)
}
