package container

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// StopContainer asks the container to end and kills it when it has not after
// the timeout. It returns as soon as the end is recorded.
func (s *Server) StopContainer(ctx context.Context, req *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	c, err := s.container(req.GetContainerId())
	if errors.Is(err, errNotFound) {
		return &runtimeapi.StopContainerResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := s.stop(ctx, c, time.Duration(req.GetTimeout())*time.Second); err != nil {
		return nil, fmt.Errorf("stopping container %s: %w", c.ID, err)
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

// stop is idempotent and may run several times at once: a second call with a
// shorter grace cuts the first one's short.
func (s *Server) stop(ctx context.Context, c *container, grace time.Duration) error {
	c.op.Lock() // not while it is being started
	c.mu.RLock()
	state, child, sig := c.state(), c.child, c.stopSignal()
	c.mu.RUnlock()
	c.op.Unlock()
	if state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil
	}
	if grace > 0 {
		number, err := parseSignal(sig)
		if err != nil {
			number = unix.SIGTERM
		}
		if err := c.pod.executor.Signal(ctx, c.ID, child, number); err != nil {
			return err
		}
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-c.exited:
			return nil
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := c.group.Kill(); err != nil {
		return err
	}
	// Beside the group: a process may have been moved out of it.
	if err := child.Signal(unix.SIGKILL); err != nil {
		return err
	}
	select {
	case <-c.exited:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// stopSignal is the pod's choice before the image's.
func (c *container) stopSignal() string {
	if sig := c.config().GetStopSignal(); sig != runtimeapi.Signal_RUNTIME_DEFAULT {
		return sig.String()
	}
	if c.Stop != "" {
		return c.Stop
	}
	return "SIGTERM"
}

// parseSignal understands a number, a name with or without SIG, and the
// real-time signals as RTMIN, RTMIN+n, RTMAX-n (or the CRI's RTMINPLUSn).
func parseSignal(name string) (unix.Signal, error) {
	n := strings.TrimPrefix(strings.ToUpper(strings.TrimSpace(name)), "SIG")
	if v, err := strconv.Atoi(n); err == nil && v > 0 && v < 65 {
		return unix.Signal(v), nil
	}
	const rtmin, rtmax = 34, 64 // as C libraries number them
	n = strings.NewReplacer("PLUS", "+", "MINUS", "-").Replace(n)
	for _, base := range []struct {
		name string
		at   int
		sign string
		dir  int
	}{{"RTMIN", rtmin, "+", 1}, {"RTMAX", rtmax, "-", -1}} {
		rest, ok := strings.CutPrefix(n, base.name)
		if !ok {
			continue
		}
		if rest == "" {
			return unix.Signal(base.at), nil
		}
		v, err := strconv.Atoi(strings.TrimPrefix(rest, base.sign))
		if err != nil || v < 0 || v > rtmax-rtmin {
			break
		}
		return unix.Signal(base.at + base.dir*v), nil
	}
	if sig := unix.SignalNum("SIG" + n); sig != 0 {
		return sig, nil
	}
	return 0, fmt.Errorf("%w: unknown signal %q", errInvalid, name)
}

// signalEnum is the CRI's name of a signal.
func signalEnum(name string) runtimeapi.Signal {
	n := strings.ToUpper(name)
	if v, err := strconv.Atoi(n); err == nil {
		n = unix.SignalName(unix.Signal(v))
	}
	if !strings.HasPrefix(n, "SIG") {
		n = "SIG" + n
	}
	n = strings.NewReplacer("+", "PLUS", "-", "MINUS").Replace(n)
	return runtimeapi.Signal(runtimeapi.Signal_value[n])
}
