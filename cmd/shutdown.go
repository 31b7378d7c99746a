package cmd

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"knarr.dev/knarr/agent"
	"knarr.dev/knarr/agent/logind"
	"knarr.dev/knarr/agent/shutdown"
)

// A process that gets SIGPWR ends the node's pods in order and then itself; "knarr
// down --graceful" and service managers send it. Where systemd's logind runs, that
// tells of the machine's shutdown by itself.

// ShutdownConfig says how a node's pods end before the machine does, under the names
// of a KubeletConfiguration.
type ShutdownConfig struct {
	// Grace is how long all pods may take, of which CriticalGrace is for the critical
	// ones. Empty or 0: the machine does not wait for pods.
	Grace         string `json:"shutdownGracePeriod,omitempty"`
	CriticalGrace string `json:"shutdownGracePeriodCriticalPods,omitempty"`
	// ByPriority is used instead of both.
	ByPriority []ShutdownPriority `json:"shutdownGracePeriodByPodPriority,omitempty"`
}

// ShutdownPriority is how long pods may take from one priority to the next.
type ShutdownPriority struct {
	Priority int32 `json:"priority"`
	Seconds  int64 `json:"shutdownGracePeriodSeconds"`
}

// shutdownMargin is what a process may take beyond the time of its pods.
const shutdownMargin = 30 * time.Second

// askedShutdown is how long pods have if somebody asks for their end and nothing is
// configured.
const askedShutdown = 30 * time.Second

// shutdownFlags adds the kubelet's settings as flags of the same meaning.
func shutdownFlags(f *pflag.FlagSet) func(*Config) {
	grace := f.Duration("shutdown-grace-period", 0, "how long pods may take to end before the machine goes down")
	critical := f.Duration("shutdown-grace-period-critical-pods", 0, "how much of shutdown-grace-period is for critical pods")
	return func(cfg *Config) {
		if f.Changed("shutdown-grace-period") {
			cfg.Node.ShutdownConfig.Grace = grace.String()
		}
		if f.Changed("shutdown-grace-period-critical-pods") {
			cfg.Node.CriticalGrace = critical.String()
		}
	}
}

// periods checks the settings and turns them into the agent's.
func (s *ShutdownConfig) periods() ([]shutdown.Period, error) {
	var times [2]time.Duration
	for i, v := range []struct{ name, text string }{{"shutdownGracePeriod", s.Grace}, {"shutdownGracePeriodCriticalPods", s.CriticalGrace}} {
		if v.text == "" {
			continue
		}
		var err error
		if times[i], err = time.ParseDuration(v.text); err != nil || times[i] < 0 || times[i] > 0 && times[i] < time.Second {
			return nil, fmt.Errorf("%s: %q must be a duration of at least a second, such as 30s", v.name, v.text)
		}
	}
	if times[1] > times[0] {
		return nil, fmt.Errorf("shutdownGracePeriodCriticalPods is part of shutdownGracePeriod and must not exceed it")
	}
	if len(s.ByPriority) == 0 {
		return shutdown.Periods(times[0], times[1]), nil
	}
	if times[0] > 0 {
		return nil, fmt.Errorf("shutdownGracePeriodByPodPriority and shutdownGracePeriod exclude each other")
	}
	var out []shutdown.Period
	for _, p := range s.ByPriority {
		out = append(out, shutdown.Period{Priority: p.Priority, Grace: time.Duration(p.Seconds) * time.Second})
	}
	return out, shutdown.Validate(out)
}

// within is how long the process may take to end gracefully.
func (s *ShutdownConfig) within() time.Duration {
	periods, err := s.periods()
	if err != nil || shutdown.Total(periods) == 0 {
		return askedShutdown + shutdownMargin
	}
	return shutdown.Total(periods) + shutdownMargin
}

// inhibitor reaches the machine's logind; nil: there is none.
func inhibitor() func(context.Context) (agent.Inhibitor, error) {
	if _, err := os.Stat(logind.Socket); err != nil {
		return nil
	}
	return func(ctx context.Context) (agent.Inhibitor, error) { return logind.Dial(ctx, logind.Socket) }
}

// runShutdown waits for SIGPWR, ends the pods of all of the machine's nodes, and then
// has the process end.
func (n *node) runShutdown(ctx context.Context, a *agent.Agent) error {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, unix.SIGPWR)
	defer signal.Stop(asked)
	select {
	case <-asked:
	case <-ctx.Done():
		return nil
	}
	var g errgroup.Group
	for _, name := range n.cfg.startedNodes() {
		cfg := n.cfg.startedNode(name)
		g.Go(func() error { return endProcess(ctx, cfg, unix.SIGPWR, n.cfg.Node.within()) })
	}
	a.Shutdown(ctx)
	if err := g.Wait(); err != nil {
		n.log.Warn("a node of this machine did not end in order", "error", err)
	}
	return unix.Kill(os.Getpid(), unix.SIGTERM)
}
