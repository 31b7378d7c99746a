package cmd

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"knarr.dev/knarr/agent/podspec"
)

// AdmissionConfig is what a node lets pods be and have, in the terms of a kubelet's
// configuration.
type AdmissionConfig struct {
	// UnsafeSysctls are names, or beginnings of names with a star, of kernel parameters
	// that pods may set besides the safe ones.
	UnsafeSysctls []string `json:"allowedUnsafeSysctls,omitempty"`
	// PodPids is how many processes and threads a pod may have; 0 or -1: as many as all
	// pods together may.
	PodPids int64 `json:"podPidsLimit,omitempty"`
	// LogMaxSize is how large a container's log file grows, such as 10Mi; LogMaxFiles is
	// how many are kept, 2 at least. 0 stands for 10Mi and 5.
	LogMaxSize  resource.Quantity `json:"containerLogMaxSize,omitzero"`
	LogMaxFiles int               `json:"containerLogMaxFiles,omitempty"`
	// SingleProcessOOMKill has the kernel end one process of a container that is out of
	// memory instead of all.
	SingleProcessOOMKill bool `json:"singleProcessOOMKill,omitempty"`
	// SeccompDefault has containers that name no seccomp profile run under the runtime's.
	SeccompDefault bool `json:"seccompDefault,omitempty"`
	// SystemReserved and KubeReserved are kept back, together, from pods: cpu, memory,
	// ephemeral-storage, pid.
	SystemReserved map[string]string `json:"systemReserved,omitempty"`
	KubeReserved   map[string]string `json:"kubeReserved,omitempty"`
	// Taints are those with which the node is made.
	Taints []corev1.Taint `json:"registerWithTaints,omitempty"`
}

// reserved is what is kept back from pods.
func (c *AdmissionConfig) reserved() (corev1.ResourceList, error) {
	out := corev1.ResourceList{}
	for field, list := range map[string]map[string]string{"systemReserved": c.SystemReserved, "kubeReserved": c.KubeReserved} {
		for name, text := range list {
			q, err := resource.ParseQuantity(text)
			if err != nil || q.Sign() < 0 || !slices.Contains(reservable, corev1.ResourceName(name)) {
				return nil, fmt.Errorf("%s: %s: %s cannot be kept back; give amounts of %v, none negative", field, name, text, reservable)
			}
			sum := out[corev1.ResourceName(name)]
			sum.Add(q)
			out[corev1.ResourceName(name)] = sum
		}
	}
	return out, nil
}

// tasks are processes and threads.
const tasks corev1.ResourceName = "pid"

var reservable = []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage, tasks}

func (c *AdmissionConfig) validate() error {
	if _, err := c.reserved(); err != nil {
		return err
	}
	if err := podspec.CheckSysctlPatterns(c.UnsafeSysctls); err != nil {
		return fmt.Errorf("allowedUnsafeSysctls: %w", err)
	}
	if c.PodPids < -1 {
		return fmt.Errorf("podPidsLimit: %d is less than -1, which stands for no limit", c.PodPids)
	}
	if c.LogMaxSize.Sign() < 0 {
		return fmt.Errorf("containerLogMaxSize: %s is negative", c.LogMaxSize.String())
	}
	if c.LogMaxFiles != 0 && c.LogMaxFiles < 2 {
		return fmt.Errorf("containerLogMaxFiles: %d is less than 2", c.LogMaxFiles)
	}
	for i, t := range c.Taints {
		if t.Key == "" || !slices.Contains(taintEffects, t.Effect) {
			return fmt.Errorf("registerWithTaints[%d]: %q is not a taint; it needs a key and one of the effects %v", i, t.ToString(), taintEffects)
		}
	}
	return nil
}

var taintEffects = []corev1.TaintEffect{corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute}

// admissionFlags adds the kubelet's flags of the same meaning.
func admissionFlags(f *pflag.FlagSet) func(*Config) error {
	sysctls := f.StringSlice("allowed-unsafe-sysctls", nil, "kernel parameters that pods may set besides the safe ones, such as net.core.somaxconn or net.*")
	pids := f.Int64("pod-max-pids", -1, "how many processes and threads a pod may have; -1: no limit of its own")
	system := f.StringToString("system-reserved", nil, "what is kept back from pods for the machine, such as cpu=500m,memory=1Gi")
	kube := f.StringToString("kube-reserved", nil, "what is kept back from pods for knarr, in the same way")
	confined := f.Bool("seccomp-default", false, "containers that name no seccomp profile run under the runtime's own")
	taints := f.StringSlice("register-with-taints", nil, "taints with which the node is made, such as dedicated=db:NoSchedule")
	return func(cfg *Config) error {
		c := &cfg.Node.AdmissionConfig
		if f.Changed("allowed-unsafe-sysctls") {
			c.UnsafeSysctls = *sysctls
		}
		if f.Changed("pod-max-pids") {
			c.PodPids = *pids
		}
		if f.Changed("system-reserved") {
			c.SystemReserved = *system
		}
		if f.Changed("kube-reserved") {
			c.KubeReserved = *kube
		}
		if f.Changed("seccomp-default") {
			c.SeccompDefault = *confined
		}
		if f.Changed("register-with-taints") {
			c.Taints = nil
			for _, text := range *taints {
				key, effect, _ := strings.Cut(text, ":")
				key, value, _ := strings.Cut(key, "=")
				c.Taints = append(c.Taints, corev1.Taint{Key: key, Value: value, Effect: corev1.TaintEffect(effect)})
			}
		}
		return nil
	}
}
