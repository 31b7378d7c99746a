package cmd

import (
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"knarr.dev/knarr/agent/eviction"
)

func TestEvictionSettings(t *testing.T) {
	parse := func(args ...string) (*eviction.Config, error) {
		f := pflag.NewFlagSet("", pflag.ContinueOnError)
		apply := evictionFlags(f)
		if err := f.Parse(args); err != nil {
			t.Fatal(err)
		}
		cfg := &Config{}
		if err := apply(cfg); err != nil {
			return nil, err
		}
		return cfg.Node.EvictionConfig.config()
	}
	if c, err := parse(); err != nil || len(c.Hard) != 5 || c.Transition != 5*time.Minute {
		t.Errorf("defaults: %+v, %v", c, err)
	}
	c, err := parse("--eviction-hard=memory.available<1Gi", "--eviction-soft=nodefs.available<20%", "--eviction-soft-grace-period=nodefs.available=1m",
		"--eviction-max-pod-grace-period=9", "--eviction-minimum-reclaim=nodefs.available=1Gi", "--eviction-pressure-transition-period=30s")
	if err != nil || len(c.Hard) != 1 || c.Soft[eviction.NodeFsAvailable].Share != .2 || c.Grace[eviction.NodeFsAvailable] != time.Minute ||
		c.MaxPodGrace != 9*time.Second || c.Transition != 30*time.Second || len(c.Reclaim) != 1 {
		t.Errorf("settings: %+v, %v", c, err)
	}
	for want, args := range map[string][]string{
		"needs a grace period": {"--eviction-soft=memory.available<1Gi"},
		"no eviction signal":   {"--eviction-hard=cpu<1"},
		"want SIGNAL<VALUE":    {"--eviction-hard=memory.available"},
	} {
		if _, err := parse(args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", args, err)
		}
	}
	if c, err := parse("--eviction-hard="); err != nil || len(c.Hard) != 0 {
		t.Errorf("none at all: %+v, %v", c, err)
	}
}

func TestLongestBackOff(t *testing.T) {
	for text, want := range map[string]time.Duration{"": 0, "1s": time.Second, "90s": 90 * time.Second, "5m": 5 * time.Minute, "0s": -1, "500ms": -1, "6m": -1, "long": -1, "-1s": -1} {
		cfg := defaultConfig()
		cfg.Node.MaxRestartPeriod = text
		d, err := cfg.Node.maxRestart()
		if (err != nil) != (want < 0) || err == nil && d != want {
			t.Errorf("%q: %v, %v", text, d, err)
		}
		if err := cfg.validate(); (err != nil) != (want < 0) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
