package cmd

import (
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"knarr.dev/knarr/agent/shutdown"
)

func TestShutdownSettings(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"{}": 0,
		"{shutdownGracePeriod: 30s, shutdownGracePeriodCriticalPods: 10s}": 30 * time.Second,
		"{shutdownGracePeriod: 1m}":                                        time.Minute,
		"{shutdownGracePeriodByPodPriority: [{priority: 0, shutdownGracePeriodSeconds: 60}, {priority: 9, shutdownGracePeriodSeconds: 5}]}": 65 * time.Second,
		"{shutdownGracePeriod: 10s, shutdownGracePeriodCriticalPods: 30s}":                                                                  -1,
		"{shutdownGracePeriod: soon}": -1,
		"{shutdownGracePeriod: 10ms}": -1,
		"{shutdownGracePeriod: 10s, shutdownGracePeriodByPodPriority: [{priority: 0, shutdownGracePeriodSeconds: 60}]}":                     -1,
		"{shutdownGracePeriodByPodPriority: [{priority: 0, shutdownGracePeriodSeconds: 60}, {priority: 0, shutdownGracePeriodSeconds: 6}]}": -1,
	} {
		var n NodeConfig
		if err := yaml.UnmarshalStrict([]byte(text), &n); err != nil {
			t.Fatal(err)
		}
		periods, err := n.ShutdownConfig.periods()
		if (err != nil) != (want < 0) || err == nil && shutdown.Total(periods) != want {
			t.Errorf("%s: %v, %v", text, periods, err)
		}
	}
	if d := (&ShutdownConfig{}).within(); d != time.Minute {
		t.Errorf("a graceful end without settings may take %v", d)
	}
}
