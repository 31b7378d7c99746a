package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"knarr.dev/knarr/container"
	"knarr.dev/knarr/datapath"
)

func downCommand() *cobra.Command {
	c := &cobra.Command{Use: "down", Short: "Stop a cluster and remove every trace of it from this machine", Args: cobra.NoArgs}
	load := runningFlags(c)
	graceful := c.Flags().Bool("graceful", false, "end the pods in order before, within the node's shutdownGracePeriod (30s if it has none)")
	keep := c.Flags().Bool("keep-data", false, "keep the data directory: the next up has the same objects and images")
	c.RunE = func(c *cobra.Command, _ []string) error {
		cfg, err := load()
		if err != nil {
			return err
		}
		if os.Geteuid() != 0 {
			return errors.New("knarr down must run as root")
		}
		if *graceful {
			if err := endProcess(c.Context(), cfg, unix.SIGPWR, cfg.Node.within()); err != nil {
				return err
			}
		}
		return down(c.Context(), cfg, *keep, c.OutOrStdout())
	}
	return c
}

// down stops the process, then the containers, then removes what is left.
func down(ctx context.Context, cfg *Config, keepData bool, out io.Writer) error {
	if ctx == nil {
		ctx = context.Background()
	}
	log := logger(cfg.LogLevel, os.Stderr)
	if err := stopProcess(ctx, cfg); err != nil {
		return err
	}
	if _, err := os.Stat(cfg.RunDir); err == nil {
		var g errgroup.Group
		for _, name := range cfg.startedNodes() {
			g.Go(func() error { return cfg.downNode(ctx, name, keepData) })
		}
		if err := g.Wait(); err != nil {
			return err
		}
		if err := destroyNode(ctx, cfg, log); err != nil {
			return err
		}
		if err := os.RemoveAll(cfg.RunDir); err != nil {
			return fmt.Errorf("remove %s: %w", cfg.RunDir, err)
		}
	}
	if cfg.API.Kubeconfig != "" {
		if err := removeAccess(cfg.API.Kubeconfig, cfg.Name); err != nil {
			return err
		}
	}
	if keepData {
		fmt.Fprintf(out, "%s is down; its data is kept in %s\n", cfg.Name, cfg.DataDir)
		return nil
	}
	if err := cfg.removeLogs(); err != nil {
		return fmt.Errorf("remove the pods' logs: %w", err)
	}
	if err := os.RemoveAll(cfg.DataDir); err != nil {
		return fmt.Errorf("remove %s: %w", cfg.DataDir, err)
	}
	fmt.Fprintf(out, "%s is down and removed\n", cfg.Name)
	return nil
}

// stopTimeout is how long a process may take to end by itself.
const stopTimeout = 15 * time.Second

// process returns the running instance's process, or 0.
func (c *Config) process() int {
	b, err := os.ReadFile(c.pidFile())
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 0 || !isKnarr(pid) {
		return 0
	}
	return pid
}

// isKnarr guards against a number that the kernel has given to somebody else.
func isKnarr(pid int) bool {
	self, err := os.Executable()
	if err != nil {
		return false
	}
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return false
	}
	return strings.TrimSuffix(exe, " (deleted)") == self || strings.Contains(exe, "knarr")
}

func stopProcess(ctx context.Context, cfg *Config) error {
	return endProcess(ctx, cfg, unix.SIGTERM, stopTimeout)
}

// endProcess asks the process by a signal to end, and kills it when it has not within
// the time.
func endProcess(ctx context.Context, cfg *Config, sig unix.Signal, within time.Duration) error {
	pid := cfg.process()
	if pid == 0 {
		return nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("watch process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("stop process %d: %w", pid, err)
	}
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(poll, int(within.Milliseconds()))
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("wait for process %d: %w", pid, err)
		case n > 0:
			return ctx.Err()
		}
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
			return fmt.Errorf("process %d does not end: %w", pid, err)
		}
	}
}

// destroyNode removes containers, then links, rules and programs.
func destroyNode(ctx context.Context, cfg *Config, l *slog.Logger) error {
	d, err := datapath.Open(ctx, cfg.datapathConfig(l))
	if err != nil {
		return fmt.Errorf("data path: %w", err)
	}
	if cfg.foreign() {
		if err := destroyForeign(ctx, cfg, d, l); err != nil {
			return err
		}
	} else {
		r, err := container.New(ctx, cfg.containerConfig(d, l))
		if err != nil {
			return fmt.Errorf("container runtime: %w", err)
		}
		if err := errors.Join(r.Destroy(ctx), (&podGroups{}).Remove(ctx, cfg.group())); err != nil {
			return fmt.Errorf("container runtime: %w", err)
		}
	}
	if err := d.Destroy(ctx); err != nil {
		return fmt.Errorf("data path: %w", err)
	}
	cfg.removeSockets()
	return removeMounts(cfg)
}

// removeMounts unmounts what lies below the instance's directories: volumes.
func removeMounts(cfg *Config) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var points []string
	for _, line := range strings.Split(string(b), "\n") {
		if f := strings.Fields(line); len(f) > 4 {
			if p := f[4]; strings.HasPrefix(p, cfg.DataDir+"/") || strings.HasPrefix(p, cfg.RunDir+"/") {
				points = append(points, p)
			}
		}
	}
	for i := len(points) - 1; i >= 0; i-- {
		if err := unix.Unmount(points[i], unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", points[i], err)
		}
	}
	return nil
}
