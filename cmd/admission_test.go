package cmd

import (
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"
)

func TestAdmissionConfig(t *testing.T) {
	for text, want := range map[string]string{
		"{containerLogMaxSize: 1Mi, containerLogMaxFiles: 2, singleProcessOOMKill: true}": "",
		"{containerLogMaxSize: -1Mi}": "containerLogMaxSize: -1Mi is negative",
		"{containerLogMaxSize: 1Mi, seccompDefault: true, systemReserved: {cpu: 100m, memory: 1Gi}, kubeReserved: {memory: 1Gi, pid: \"100\", ephemeral-storage: 1Gi}}": "",
		"{kubeReserved: {memory: -1Gi}}": "kubeReserved: memory: -1Gi cannot be kept back; give amounts of [cpu memory ephemeral-storage pid], none negative",
		"{kubeReserved: {pods: \"1\"}}":  "kubeReserved: pods: 1 cannot be kept back; give amounts of [cpu memory ephemeral-storage pid], none negative",
		"{containerLogMaxFiles: 1}":      "containerLogMaxFiles: 1 is less than 2",
	} {
		var c AdmissionConfig
		if err := yaml.UnmarshalStrict([]byte(text), &c); err != nil {
			t.Fatal(err)
		}
		err := c.validate()
		if want == "" && (err != nil || c.LogMaxSize.Value() != 1<<20) || want != "" && (err == nil || err.Error() != want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func TestAdmissionFlags(t *testing.T) {
	for args, want := range map[string]string{
		"": "",
		"--allowed-unsafe-sysctls=net.core.*,kernel.msgmax --pod-max-pids=100 --register-with-taints=dedicated=db:NoSchedule,slow:NoExecute": "",
		"--pod-max-pids=-2":                      "podPidsLimit: -2",
		"--allowed-unsafe-sysctls=vm.swappiness": `allowedUnsafeSysctls: sysctl "vm.swappiness" is not of a namespace`,
		"--allowed-unsafe-sysctls=*":             `allowedUnsafeSysctls: sysctl "*": write a name`,
		"--allowed-unsafe-sysctls=net.*.x":       `allowedUnsafeSysctls: sysctl "net.*.x": write a name`,
		"--register-with-taints=a=b":             `registerWithTaints[0]: "a=b:" is not a taint`,
		"--register-with-taints=:NoSchedule":     `registerWithTaints[0]: ":NoSchedule" is not a taint`,
		"--register-with-taints=a:Never":         `registerWithTaints[0]: "a:Never" is not a taint`,
	} {
		f := pflag.NewFlagSet("t", pflag.ContinueOnError)
		apply := admissionFlags(f)
		cfg := &Config{}
		if err := f.Parse(strings.Fields(args)); err != nil {
			t.Fatal(err)
		}
		if err := apply(cfg); err != nil {
			t.Fatal(err)
		}
		err := cfg.Node.AdmissionConfig.validate()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
		if strings.Contains(args, "slow:") {
			c := cfg.Node.AdmissionConfig
			if len(c.UnsafeSysctls) != 2 || c.PodPids != 100 || len(c.Taints) != 2 || c.Taints[0].ToString() != "dedicated=db:NoSchedule" || c.Taints[1].ToString() != "slow:NoExecute" {
				t.Errorf("%+v", c)
			}
		}
	}
}
