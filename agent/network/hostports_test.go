package network

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/datapath/spec"
)

func portedPod(ports ...corev1.ContainerPort) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "h", UID: "h"},
		Spec:       corev1.PodSpec{NodeName: "me", Containers: []corev1.Container{{Name: "c", Ports: ports}}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.9", PodIPs: []corev1.PodIP{{IP: "10.0.0.9"}}},
	}
}

func TestHostPorts(t *testing.T) {
	show := func(list []spec.Service) (out []string) {
		for i := range list {
			if err := list[i].Validate(); err != nil {
				t.Error(err)
			}
			out = append(out, fmt.Sprintf("%s node=%d ips=%v to=%v local=%v", list[i].Protocol, list[i].NodePort, list[i].ExternalIPs, list[i].Backends, list[i].ExternalLocal))
		}
		return out
	}
	to := "to=[{10.0.0.9:8080 true}] local=true"
	for name, tc := range map[string]struct {
		change func(*corev1.Pod)
		ports  []corev1.ContainerPort
		want   []string
	}{
		"none":          {ports: []corev1.ContainerPort{{ContainerPort: 80}}},
		"any address":   {ports: []corev1.ContainerPort{{ContainerPort: 8080, HostPort: 80}}, want: []string{"TCP node=80 ips=[] " + to}},
		"0.0.0.0":       {ports: []corev1.ContainerPort{{ContainerPort: 8080, HostPort: 80, HostIP: "0.0.0.0"}}, want: []string{"TCP node=80 ips=[] " + to}},
		"one address":   {ports: []corev1.ContainerPort{{ContainerPort: 8080, HostPort: 80, HostIP: "127.0.0.1", Protocol: "UDP"}}, want: []string{"UDP node=0 ips=[127.0.0.1] " + to}},
		"no address":    {ports: []corev1.ContainerPort{{ContainerPort: 8080, HostPort: 80}}, change: func(p *corev1.Pod) { p.Status.PodIPs = nil }},
		"ended":         {ports: []corev1.ContainerPort{{ContainerPort: 8080, HostPort: 80}}, change: func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }},
		"host network":  {ports: []corev1.ContainerPort{{ContainerPort: 80, HostPort: 80}}, change: func(p *corev1.Pod) { p.Spec.HostNetwork = true }},
		"a sidecar's":   {change: func(p *corev1.Pod) { sidecar(p, corev1.ContainerRestartPolicyAlways) }, want: []string{"TCP node=80 ips=[] " + to}},
		"an init one's": {change: func(p *corev1.Pod) { sidecar(p, "") }},
	} {
		pod := portedPod(tc.ports...)
		if tc.change != nil {
			tc.change(pod)
		}
		if got := show(HostPorts(pod)); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

func sidecar(p *corev1.Pod, policy corev1.ContainerRestartPolicy) {
	c := corev1.Container{Name: "s", Ports: []corev1.ContainerPort{{ContainerPort: 8080, HostPort: 80}}}
	if policy != "" {
		c.RestartPolicy = &policy
	}
	p.Spec.InitContainers = []corev1.Container{c}
}

// A pod's ports come into force with it and leave with it.
func TestHostPortsFollowPods(t *testing.T) {
	c := newCluster(t, "me")
	plane := newPlane()
	c.run("me", plane, false)
	has := func(want bool) {
		t.Helper()
		deadline := time.After(patience)
		for {
			select {
			case s := <-plane.sets:
				there := slices.ContainsFunc(s.Services, func(s spec.Service) bool {
					return s.NodePort == 7070 && slices.Equal(s.Backends, []spec.Backend{{Addr: netip.MustParseAddrPort("10.0.0.9:8080"), Local: true}})
				})
				if there == want {
					return
				}
			case <-deadline:
				t.Fatalf("the host port is in force: never %v", want)
			}
		}
	}
	pod := portedPod(corev1.ContainerPort{ContainerPort: 8080, HostPort: 7070})
	c.create(client.Pods, pod)
	has(true)
	zero := int64(0)
	if err := c.api.Delete(t.Context(), client.Key{Resource: client.Pods, Namespace: "ns", Name: "h"}, metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
		t.Fatal(err)
	}
	has(false)
}
