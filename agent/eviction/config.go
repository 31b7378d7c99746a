// Package eviction decides what a node does when it runs short of memory, disk or
// process numbers: which thresholds are crossed, what the node says of itself, and
// which pod has to go. It is pure: observations and the clock come in as values. See
// https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction.
package eviction

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Signal is something that a node may run short of.
type Signal string

// The signals, by the names that kubelets use.
const (
	MemoryAvailable   Signal = "memory.available"
	NodeFsAvailable   Signal = "nodefs.available"
	NodeFsInodesFree  Signal = "nodefs.inodesFree"
	ImageFsAvailable  Signal = "imagefs.available"
	ImageFsInodesFree Signal = "imagefs.inodesFree"
	PIDAvailable      Signal = "pid.available"
)

// signals are all of them, the most pressing first.
var signals = []Signal{MemoryAvailable, NodeFsAvailable, NodeFsInodesFree, ImageFsAvailable, ImageFsInodesFree, PIDAvailable}

// Resource is what a signal is short of, as messages name it.
func (s Signal) Resource() corev1.ResourceName {
	switch s {
	case MemoryAvailable:
		return corev1.ResourceMemory
	case NodeFsAvailable, ImageFsAvailable:
		return corev1.ResourceEphemeralStorage
	case NodeFsInodesFree, ImageFsInodesFree:
		return "inodes"
	}
	return "pids"
}

// Condition is what the node says of itself while the signal is short.
func (s Signal) Condition() corev1.NodeConditionType {
	switch s {
	case MemoryAvailable:
		return corev1.NodeMemoryPressure
	case PIDAvailable:
		return corev1.NodePIDPressure
	}
	return corev1.NodeDiskPressure
}

// Value is an amount, or a share of the capacity; the less of both if both are not zero.
type Value struct {
	Quantity resource.Quantity
	Share    float64 // 0.1 is 10 %
}

// Of is the amount, given the capacity.
func (v Value) Of(capacity int64) int64 {
	if v.Share == 0 {
		return v.Quantity.Value()
	}
	share := int64(math.Round(v.Share * float64(capacity)))
	if v.Quantity.IsZero() {
		return share
	}
	return min(share, v.Quantity.Value())
}

// Config says when a node is short of what.
type Config struct {
	// Hard thresholds act at once, Soft ones after their Grace.
	Hard, Soft map[Signal]Value
	Grace      map[Signal]time.Duration
	// MaxPodGrace bounds the grace period of pods that go by a soft threshold.
	MaxPodGrace time.Duration
	// Reclaim is how much more than its threshold a signal must have again.
	Reclaim map[Signal]Value
	// Transition is for how long a condition stays after its cause has gone.
	Transition time.Duration
}

// Default is what kubelets have, but for what has to be free of a disk: with 1 GiB, or
// 5 % of a small one, instead of 10 % and 15 %, a node on somebody's own machine does not
// turn pods away because of what else lies on a large disk.
func Default() Config {
	disk := Value{Quantity: resource.MustParse("1Gi"), Share: .05}
	return Config{
		Hard: map[Signal]Value{
			MemoryAvailable: {Quantity: resource.MustParse("100Mi")}, NodeFsAvailable: disk, NodeFsInodesFree: {Share: .05},
			ImageFsAvailable: disk, ImageFsInodesFree: {Share: .05},
		},
		Transition: 5 * time.Minute,
	}
}

// ParseThresholds reads "memory.available<100Mi,nodefs.available<10%", with sep "<";
// with sep "=" what is to be reclaimed. An empty text has none.
func ParseThresholds(text, sep string) (map[Signal]Value, error) {
	out := map[Signal]Value{}
	err := parse(text, sep, func(s Signal, v string) error {
		if p, ok := strings.CutSuffix(v, "%"); ok {
			share, err := strconv.ParseFloat(p, 64)
			if err != nil || share <= 0 || share >= 100 {
				return fmt.Errorf("%q must be a percentage between 0 and 100", v)
			}
			out[s] = Value{Share: share / 100}
			return nil
		}
		q, err := resource.ParseQuantity(v)
		if err != nil || q.Sign() <= 0 {
			return fmt.Errorf("%q must be a positive quantity or a percentage", v)
		}
		out[s] = Value{Quantity: q}
		return nil
	})
	return out, err
}

// ParseGrace reads "memory.available=1m30s".
func ParseGrace(text string) (map[Signal]time.Duration, error) {
	out := map[Signal]time.Duration{}
	err := parse(text, "=", func(s Signal, v string) error {
		d, err := time.ParseDuration(v)
		if err != nil || d < 0 {
			return fmt.Errorf("%q must be a duration such as 1m30s", v)
		}
		out[s] = d
		return nil
	})
	return out, err
}

func parse(text, sep string, take func(Signal, string) error) error {
	seen := map[Signal]bool{}
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		name, v, ok := strings.Cut(part, sep)
		s := Signal(strings.TrimSpace(name))
		switch {
		case !ok:
			return fmt.Errorf("%q: want SIGNAL%sVALUE", part, sep)
		case !slices.Contains(signals, s):
			return fmt.Errorf("%q is no eviction signal; there are %v", s, signals)
		case seen[s]:
			return fmt.Errorf("%s is given twice", s)
		}
		seen[s] = true
		if err := take(s, strings.TrimSpace(v)); err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
	}
	return nil
}

// Validate finds a soft threshold without its grace.
func (c *Config) Validate() error {
	for s := range c.Soft {
		if _, ok := c.Grace[s]; !ok {
			return fmt.Errorf("soft eviction threshold %s needs a grace period", s)
		}
	}
	return nil
}
