package env

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestExpand(t *testing.T) {
	vars := map[string]string{"A": "1", "B": "$(A)", "E": ""}
	for in, want := range map[string]string{
		"":              "",
		"plain":         "plain",
		"$(A)":          "1",
		"x$(A)y$(A)":    "x1y1",
		"$(B)":          "$(A)",
		"$$(A)":         "$(A)",
		"$$$(A)":        "$1",
		"$(NONE)":       "$(NONE)",
		"$(A":           "$(A",
		"$":             "$",
		"a$":            "a$",
		"$A":            "$A",
		"$(E)|":         "|",
		"$$":            "$",
		"$()":           "$()",
		"pre-$(A)$(A":   "pre-1$(A",
		"$(A) $$ $(A)!": "1 $ 1!",
	} {
		if got := ExpandAll([]string{in}, vars)[0]; got != want {
			t.Errorf("Expand(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzExpand(f *testing.F) {
	f.Add("$(A)$$x$(")
	f.Fuzz(func(t *testing.T, s string) {
		seen := func(n string) (string, bool) { return "", false }
		_ = Expand(s, seen)
	})
}

func TestServices(t *testing.T) {
	got := Services([]*corev1.Service{
		{ObjectMeta: metav1.ObjectMeta{Name: "my-db"}, Spec: corev1.ServiceSpec{ClusterIP: "10.0.0.1",
			Ports: []corev1.ServicePort{{Name: "sql", Port: 5432}, {Port: 53, Protocol: corev1.ProtocolUDP}}}},
		{ObjectMeta: metav1.ObjectMeta{Name: "headless"}, Spec: corev1.ServiceSpec{ClusterIP: "None", Ports: []corev1.ServicePort{{Port: 1}}}},
		{ObjectMeta: metav1.ObjectMeta{Name: "six"}, Spec: corev1.ServiceSpec{ClusterIP: "fd00::1", Ports: []corev1.ServicePort{{Port: 80}}}},
	})
	want := map[string]string{
		"MY_DB_SERVICE_HOST": "10.0.0.1", "MY_DB_SERVICE_PORT": "5432", "MY_DB_SERVICE_PORT_SQL": "5432",
		"MY_DB_PORT": "tcp://10.0.0.1:5432", "MY_DB_PORT_5432_TCP": "tcp://10.0.0.1:5432",
		"MY_DB_PORT_5432_TCP_PROTO": "tcp", "MY_DB_PORT_5432_TCP_PORT": "5432", "MY_DB_PORT_5432_TCP_ADDR": "10.0.0.1",
		"MY_DB_PORT_53_UDP": "udp://10.0.0.1:53", "MY_DB_PORT_53_UDP_PROTO": "udp", "MY_DB_PORT_53_UDP_PORT": "53", "MY_DB_PORT_53_UDP_ADDR": "10.0.0.1",
		"SIX_PORT": "tcp://[fd00::1]:80",
	}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s = %q, want %q", k, got[k], v)
		}
	}
	if _, ok := got["HEADLESS_SERVICE_HOST"]; ok {
		t.Error("a headless service has no variables")
	}
}
