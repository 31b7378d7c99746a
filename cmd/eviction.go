package cmd

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"knarr.dev/knarr/agent/eviction"
)

// EvictionConfig is when the node is short of what, in the terms of a kubelet's
// configuration: signals such as memory.available, with quantities or percentages.
// A hard threshold that is set replaces all of the defaults.
type EvictionConfig struct {
	Hard    map[string]string `json:"evictionHard,omitempty"`
	Soft    map[string]string `json:"evictionSoft,omitempty"`
	Grace   map[string]string `json:"evictionSoftGracePeriod,omitempty"`
	Reclaim map[string]string `json:"evictionMinimumReclaim,omitempty"`
	// MaxPodGrace bounds, in seconds, the grace period of pods that go by a soft
	// threshold.
	MaxPodGrace int32 `json:"evictionMaxPodGracePeriod,omitempty"`
	// Transition is for how long a condition stays after its cause has gone; empty:
	// 5m.
	Transition string `json:"evictionPressureTransitionPeriod,omitempty"`
}

// maxRestart is the longest back-off of a restart; 0 for the default.
func (n *NodeConfig) maxRestart() (time.Duration, error) {
	if n.MaxRestartPeriod == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(n.MaxRestartPeriod)
	if err == nil && (d < time.Second || d > 5*time.Minute) {
		err = fmt.Errorf("%v is not between 1s and 5m", d)
	}
	return d, err
}

// evictionFlags adds the kubelet's flags of the same meaning.
func evictionFlags(f *pflag.FlagSet) func(*Config) error {
	texts := map[string]*string{
		"eviction-hard":              f.String("eviction-hard", "", "what the node must have left at least, such as memory.available<100Mi,nodefs.available<10%; pods are evicted at once"),
		"eviction-soft":              f.String("eviction-soft", "", "what the node should have left; pods are evicted after eviction-soft-grace-period"),
		"eviction-soft-grace-period": f.String("eviction-soft-grace-period", "", "for how long soft thresholds may be crossed, such as memory.available=1m30s"),
		"eviction-minimum-reclaim":   f.String("eviction-minimum-reclaim", "", "how much more than the threshold is to be left after an eviction, such as nodefs.available=1Gi"),
	}
	grace := f.Int32("eviction-max-pod-grace-period", 0, "seconds that a pod evicted by a soft threshold has to end")
	transition := f.Duration("eviction-pressure-transition-period", 5*time.Minute, "for how long a pressure condition stays after its cause has gone")
	return func(cfg *Config) error {
		e := &cfg.Node.EvictionConfig
		for name, to := range map[string]*map[string]string{"eviction-hard": &e.Hard, "eviction-soft": &e.Soft, "eviction-soft-grace-period": &e.Grace, "eviction-minimum-reclaim": &e.Reclaim} {
			if !f.Changed(name) {
				continue
			}
			sep := "="
			if name == "eviction-hard" || name == "eviction-soft" {
				sep = "<"
			}
			*to = map[string]string{}
			for part := range strings.SplitSeq(*texts[name], ",") {
				signal, value, ok := strings.Cut(strings.TrimSpace(part), sep)
				if !ok && part != "" {
					return fmt.Errorf("--%s: %q: want SIGNAL%sVALUE", name, part, sep)
				}
				if ok {
					(*to)[signal] = value
				}
			}
		}
		if f.Changed("eviction-max-pod-grace-period") {
			e.MaxPodGrace = *grace
		}
		if f.Changed("eviction-pressure-transition-period") {
			e.Transition = transition.String()
		}
		return nil
	}
}

// config checks the settings and turns them into the agent's.
func (e *EvictionConfig) config() (*eviction.Config, error) {
	c := eviction.Default()
	join := func(m map[string]string, sep string) string {
		var parts []string
		for k, v := range m {
			parts = append(parts, k+sep+v)
		}
		return strings.Join(parts, ",")
	}
	var err error
	if e.Hard != nil {
		if c.Hard, err = eviction.ParseThresholds(join(e.Hard, "<"), "<"); err != nil {
			return nil, fmt.Errorf("evictionHard: %w", err)
		}
	}
	if c.Soft, err = eviction.ParseThresholds(join(e.Soft, "<"), "<"); err != nil {
		return nil, fmt.Errorf("evictionSoft: %w", err)
	}
	if c.Grace, err = eviction.ParseGrace(join(e.Grace, "=")); err != nil {
		return nil, fmt.Errorf("evictionSoftGracePeriod: %w", err)
	}
	if c.Reclaim, err = eviction.ParseThresholds(join(e.Reclaim, "="), "="); err != nil {
		return nil, fmt.Errorf("evictionMinimumReclaim: %w", err)
	}
	if e.Transition != "" {
		if c.Transition, err = time.ParseDuration(e.Transition); err != nil || c.Transition < 0 {
			return nil, fmt.Errorf("evictionPressureTransitionPeriod: %q must be a duration such as 5m", e.Transition)
		}
	}
	c.MaxPodGrace = time.Duration(e.MaxPodGrace) * time.Second
	return &c, c.Validate()
}
