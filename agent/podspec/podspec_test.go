package podspec

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/ptr"
)

func list(cpu, memory string) corev1.ResourceList {
	l := corev1.ResourceList{}
	if cpu != "" {
		l[corev1.ResourceCPU] = resource.MustParse(cpu)
	}
	if memory != "" {
		l[corev1.ResourceMemory] = resource.MustParse(memory)
	}
	return l
}

func pod(requests, limits corev1.ResourceList) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n", UID: "u"},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{Requests: requests, Limits: limits}}}}}
}

func TestQOSAndResources(t *testing.T) {
	const memory = 8 << 30
	for _, tc := range []struct {
		name                 string
		requests, limits     corev1.ResourceList
		class                corev1.PodQOSClass
		parent               string
		shares, quota, limit int64
		oom                  int64
	}{
		{"nothing", nil, nil, "BestEffort", "/k/besteffort/podu", 2, 0, 0, 1000},
		{"equal", list("500m", "1Gi"), list("500m", "1Gi"), "Guaranteed", "/k/podu", 512, 50000, 1 << 30, -997},
		{"limits alone", nil, list("2", "1Gi"), "Guaranteed", "/k/podu", 2048, 200000, 1 << 30, -997},
		{"requests alone", list("250m", "2Gi"), nil, "Burstable", "/k/burstable/podu", 256, 0, 0, 750},
		{"more than asked", list("1m", "8Gi"), list("1m", "16Gi"), "Burstable", "/k/burstable/podu", 2, 1000, 16 << 30, 3},
		{"almost nothing", list("", "1Ki"), nil, "Burstable", "/k/burstable/podu", 2, 0, 0, 999},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := pod(tc.requests, tc.limits)
			if got := QOS(p); got != tc.class {
				t.Errorf("class %s, want %s", got, tc.class)
			}
			if got := CgroupParent("/k", p); got != tc.parent {
				t.Errorf("parent %s, want %s", got, tc.parent)
			}
			r := LinuxResources(p, &p.Spec.Containers[0], memory)
			if r.CpuShares != tc.shares || r.CpuQuota != tc.quota || r.MemoryLimitInBytes != tc.limit || r.OomScoreAdj != tc.oom || r.CpuPeriod != 100000 {
				t.Errorf("resources %v", r)
			}
		})
	}
}

// Who has no limit has none by others' either; what a pod takes beside its containers
// counts for its group.
func TestPodGroup(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	for name, tc := range map[string]struct {
		change        func(*corev1.Pod)
		memory, quota int64
		shares        int64
	}{
		"alone":          {func(*corev1.Pod) {}, 1 << 30, 50000, 512},
		"init container": {func(p *corev1.Pod) { p.Spec.InitContainers = []corev1.Container{{Name: "i"}} }, 0, 0, 512},
		"sidecar":        {func(p *corev1.Pod) { p.Spec.InitContainers = []corev1.Container{{Name: "i", RestartPolicy: &always}} }, 0, 0, 512},
		"debugger":       {func(p *corev1.Pod) { p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{}} }, 1 << 30, 50000, 512},
		"overhead":       {func(p *corev1.Pod) { p.Spec.Overhead = list("250m", "1Gi") }, 2 << 30, 75000, 768},
		"overhead beside no limit": {func(p *corev1.Pod) {
			p.Spec.Overhead, p.Spec.Containers[0].Resources.Limits = list("250m", "1Gi"), nil
		}, 0, 0, 768},
	} {
		p := pod(list("500m", "1Gi"), list("500m", "1Gi"))
		tc.change(p)
		r := GroupResources(Sandbox(p, SandboxOptions{}).Linux)
		if r.MemoryLimitInBytes != tc.memory || r.CpuQuota != tc.quota || r.CpuShares != tc.shares {
			t.Errorf("%s: %v", name, r)
		}
	}
}

// What systemd-resolved forwards to counts where its own address is all there is.
func TestResolversOfTheNode(t *testing.T) {
	dir := t.TempDir()
	for name, tc := range map[string]struct{ first, second, want string }{
		"plain":     {"nameserver 192.0.2.1", "nameserver 192.0.2.2", "192.0.2.1"},
		"resolved":  {"nameserver 127.0.0.53", "nameserver 192.0.2.2", "192.0.2.2"},
		"both":      {"nameserver 127.0.0.1\nnameserver 192.0.2.1", "nameserver 192.0.2.2", "127.0.0.1 192.0.2.1"},
		"no second": {"nameserver 127.0.0.1", "", "127.0.0.1"},
		"none":      {"", "nameserver 192.0.2.2", ""},
	} {
		first, second := filepath.Join(dir, "first"), filepath.Join(dir, "second")
		if err := errors.Join(os.WriteFile(first, []byte(tc.first), 0o600), os.WriteFile(second, []byte(tc.second), 0o600)); err != nil {
			t.Fatal(err)
		}
		if c, err := chooseResolvConf(first, second); err != nil || strings.Join(c.Servers, " ") != tc.want {
			t.Errorf("%s: %v, %v", name, c, err)
		}
	}
	if c, err := ReadResolvConf(filepath.Join(dir, "missing")); err != nil || len(c.Servers) != 0 {
		t.Errorf("no file: %v, %v", c, err)
	}
}

func TestSeccompDefault(t *testing.T) {
	unconfined := &corev1.SecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeUnconfined}}
	for _, tc := range []struct {
		s         *corev1.SecurityContext
		byDefault bool
		want      runtimeapi.SecurityProfile_ProfileType
	}{
		{nil, false, runtimeapi.SecurityProfile_Unconfined}, {nil, true, runtimeapi.SecurityProfile_RuntimeDefault}, {unconfined, true, runtimeapi.SecurityProfile_Unconfined},
	} {
		p := pod(nil, nil)
		p.Spec.Containers[0].SecurityContext = tc.s
		if got := ContainerSecurity(p, &p.Spec.Containers[0], nil, "", "", tc.byDefault).Seccomp.ProfileType; got != tc.want {
			t.Errorf("%+v: %v", tc, got)
		}
	}
}

func TestEndTogether(t *testing.T) {
	r := &runtimeapi.LinuxContainerResources{Unified: map[string]string{"memory.swap.max": "0"}}
	EndTogether(r)
	if len(r.Unified) != 2 || r.Unified["memory.oom.group"] != "1" {
		t.Error(r.Unified)
	}
}

func TestDNS(t *testing.T) {
	host := ParseResolvConf([]byte("# c\nnameserver 9.9.9.9\nsearch corp.example. .\noptions timeout:1\n"))
	cluster := []netip.Addr{netip.MustParseAddr("10.96.0.10")}
	first := &runtimeapi.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"n.svc.c.l", "svc.c.l", "c.l", "corp.example", "."}, Options: []string{"ndots:5"}}
	node := &runtimeapi.DNSConfig{Servers: []string{"9.9.9.9"}, Searches: []string{"corp.example", "."}, Options: []string{"timeout:1"}}
	for _, tc := range []struct {
		name   string
		change func(*corev1.PodSpec)
		want   *runtimeapi.DNSConfig
	}{
		{"cluster first", func(s *corev1.PodSpec) { s.DNSPolicy = corev1.DNSClusterFirst }, first},
		{"host network", func(s *corev1.PodSpec) { s.DNSPolicy, s.HostNetwork = corev1.DNSClusterFirst, true }, node},
		{"with host network", func(s *corev1.PodSpec) { s.DNSPolicy, s.HostNetwork = corev1.DNSClusterFirstWithHostNet, true }, first},
		{"default", func(s *corev1.PodSpec) { s.DNSPolicy = corev1.DNSDefault }, node},
		{"none", func(s *corev1.PodSpec) {
			s.DNSPolicy = corev1.DNSNone
			s.DNSConfig = &corev1.PodDNSConfig{Nameservers: []string{"1.1.1.1"}, Searches: []string{"x"}, Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: ptr.To("2")}, {Name: "edns0"}}}
		}, &runtimeapi.DNSConfig{Servers: []string{"1.1.1.1"}, Searches: []string{"x"}, Options: []string{"ndots:2", "edns0"}}},
		{"override", func(s *corev1.PodSpec) {
			s.DNSConfig = &corev1.PodDNSConfig{Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: ptr.To("1")}}}
		}, &runtimeapi.DNSConfig{Servers: first.Servers, Searches: first.Searches, Options: []string{"ndots:1"}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := pod(nil, nil)
			tc.change(&p.Spec)
			got := DNS(p, host, cluster, "c.l")
			if !reflect.DeepEqual([][]string{got.Servers, got.Searches, got.Options}, [][]string{tc.want.Servers, tc.want.Searches, tc.want.Options}) {
				t.Errorf("got %v\nwant %v", got, tc.want)
			}
		})
	}
}

func TestHostsAndHostname(t *testing.T) {
	p := pod(nil, nil)
	p.Spec.Hostname, p.Spec.Subdomain = "h", "sub"
	p.Spec.HostAliases = []corev1.HostAlias{{IP: "1.2.3.4", Hostnames: []string{"a", "b"}}}
	got := string(Hosts(p, nil, []string{"10.0.0.1"}, "c.l"))
	for _, want := range []string{"# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n", "10.0.0.1\th.sub.n.svc.c.l\th\n", "\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("hosts file lacks %q:\n%s", want, got)
		}
	}
	p.Spec.SetHostnameAsFQDN = ptr.To(true)
	if got := Sandbox(p, SandboxOptions{ClusterDomain: "c.l", DNS: &runtimeapi.DNSConfig{}}).Hostname; got != "h.sub.n.svc.c.l" {
		t.Errorf("host name %q", got)
	}
	p = pod(nil, nil)
	p.Name = strings.Repeat("a", 62) + "-bcd"
	if name, _ := Hostname(p, "c.l"); name != strings.Repeat("a", 62) {
		t.Errorf("long name became %q", name)
	}
}

func TestVerifyNonRoot(t *testing.T) {
	for _, tc := range []struct {
		name     string
		run      *int64
		uid      *int64
		username string
		want     string
	}{
		{"user given", ptr.To[int64](5), nil, "", ""},
		{"root given", ptr.To[int64](0), nil, "", `container's runAsUser breaks non-root policy (pod: "p_n(u)", container: c)`},
		{"root image", nil, ptr.To[int64](0), "", `container has runAsNonRoot and image will run as root (pod: "p_n(u)", container: c)`},
		{"named image user", nil, nil, "bob", `container has runAsNonRoot and image has non-numeric user (bob), cannot verify user is non-root (pod: "p_n(u)", container: c)`},
		{"numbered image user", nil, ptr.To[int64](7), "", ""},
	} {
		p := pod(nil, nil)
		p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsNonRoot: ptr.To(true), RunAsUser: tc.run}
		got := ""
		if err := VerifyNonRoot(p, &p.Spec.Containers[0], tc.uid, tc.username); err != nil {
			got = err.Error()
		}
		if got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestShouldRestart(t *testing.T) {
	p := pod(nil, nil)
	p.Spec.RestartPolicy = corev1.RestartPolicyNever
	c := &p.Spec.Containers[0]
	if ShouldRestart(p, c, 1) {
		t.Error("restarted against the pod's policy")
	}
	c.RestartPolicyRules = []corev1.ContainerRestartRule{{Action: corev1.ContainerRestartRuleActionRestart,
		ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: corev1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{42}}}}
	if !ShouldRestart(p, c, 42) || ShouldRestart(p, c, 41) {
		t.Error("the container's rule was not followed")
	}
}
