package cmd

import (
	"testing"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"
)

func TestExclusiveSettings(t *testing.T) {
	for text, ok := range map[string]bool{
		"{}": true,
		"{cpuManagerPolicy: static, reservedSystemCPUs: 0, cpuManagerPolicyOptions: {full-pcpus-only: 'true', strict-cpu-reservation: 'false'}}": true,
		"{cpuManagerPolicy: static, reservedSystemCPUs: '0', cpuManagerPolicyOptions: {full-pcpus-only: 'true'}}":                                true,
		"{cpuManagerPolicy: static}":                                                                            false,
		"{cpuManagerPolicy: dynamic, reservedSystemCPUs: '0'}":                                                  false,
		"{reservedSystemCPUs: 'x'}":                                                                             false,
		"{cpuManagerPolicyOptions: {fast: 'true'}}":                                                             false,
		"{cpuManagerPolicyOptions: {full-pcpus-only: 'maybe'}}":                                                 false,
		"{cpuManagerPolicyOptions: {full-pcpus-only: 'true', distribute-cpus-across-cores: 'true'}}":            false,
		"{topologyManagerPolicy: single-numa-node, cpuManagerPolicyOptions: {align-by-socket: 'true'}}":         false,
		"{topologyManagerPolicy: restricted, topologyManagerScope: pod}":                                        true,
		"{topologyManagerPolicy: strict}":                                                                       false,
		"{memoryManagerPolicy: Static}":                                                                         false,
		"{memoryManagerPolicy: Static, reservedMemory: [{numaNode: 0, limits: {memory: 1Gi}}]}":                 true,
		"{memoryManagerPolicy: Static, reservedMemory: [{numaNode: 0, limits: {memory: much}}]}":                false,
		"{memoryManagerPolicy: Static, reservedMemory: [{numaNode: 0, limits: {}}, {numaNode: 0, limits: {}}]}": false,
	} {
		var e ExclusiveConfig
		err := yaml.UnmarshalStrict([]byte(text), &e)
		if err == nil {
			_, err = e.config()
		}
		if (err == nil) != ok {
			t.Errorf("%s: %v", text, err)
		}
	}
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	apply := exclusiveFlags(f)
	if err := f.Parse([]string{"--cpu-manager-policy=static", "--reserved-cpus=0-1", "--topology-manager-scope=pod"}); err != nil {
		t.Fatal(err)
	}
	cfg := defaultConfig()
	cfg.Node.TopologyPolicy = "restricted"
	apply(cfg)
	e := cfg.Node.ExclusiveConfig
	if e.CPUPolicy != "static" || e.ReservedCPUs != "0-1" || e.TopologyScope != "pod" || e.TopologyPolicy != "restricted" {
		t.Errorf("%+v", e)
	}
}

func TestNodesOfAMachineShareItsCPUs(t *testing.T) {
	cfg := defaultConfig()
	cfg.Node.CPUPolicy, cfg.Node.ReservedCPUs = "static", "0"
	if err := cfg.validate(); err != nil {
		t.Error(err)
	}
	cfg.Nodes = 2
	if err := cfg.validate(); err == nil {
		t.Error("two nodes that give the same CPUs away were accepted")
	}
}
