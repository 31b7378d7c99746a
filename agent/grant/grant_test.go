package grant

import (
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestAGrantIsPutIntoAConfiguration(t *testing.T) {
	cfg := &runtimeapi.ContainerConfig{
		Envs: []*runtimeapi.KeyValue{{Key: "A", Value: []byte("pod's")}}, Annotations: map[string]string{"k": "ours"},
		Linux: &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{CpuShares: 7, CpusetMems: "1"}},
	}
	g := &Grant{CPUs: "2-3"}
	g.Add(nil)
	g.Add(&Grant{Envs: []*runtimeapi.KeyValue{{Key: "A", Value: []byte("driver's")}, {Key: "B"}}, Annotations: map[string]string{"k": "theirs", "l": "theirs"},
		Devices: []*runtimeapi.Device{{HostPath: "/dev/x"}}, Mounts: []*runtimeapi.Mount{{HostPath: "/x"}}, CDI: []*runtimeapi.CDIDevice{{Name: "v/c=d"}}})
	g.Apply(cfg)
	(*Grant)(nil).Apply(cfg)
	(&Grant{}).Apply(&runtimeapi.ContainerConfig{}) // without limits there is nothing to set
	if len(cfg.Envs) != 2 || string(cfg.Envs[0].Value) != "pod's" || cfg.Annotations["k"] != "ours" || cfg.Annotations["l"] != "theirs" {
		t.Errorf("environment %v, annotations %v", cfg.Envs, cfg.Annotations)
	}
	if len(cfg.Devices) != 1 || len(cfg.Mounts) != 1 || len(cfg.CDIDevices) != 1 {
		t.Errorf("%v, %v, %v", cfg.Devices, cfg.Mounts, cfg.CDIDevices)
	}
	if r := cfg.Linux.Resources; r.CpusetCpus != "2-3" || r.CpusetMems != "1" || r.CpuShares != 7 {
		t.Errorf("%v", r)
	}
}
