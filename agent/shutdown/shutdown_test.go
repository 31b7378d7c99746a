package shutdown

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestWhoEndsWhen(t *testing.T) {
	pods := []*corev1.Pod{{ObjectMeta: metav1.ObjectMeta{Name: "none"}}}
	for _, p := range []int32{-5, 0, 999, 1000, 50000, critical, critical + 1000} {
		pods = append(pods, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint(p)}, Spec: corev1.PodSpec{Priority: &p}})
	}
	for _, tc := range []struct {
		name    string
		periods []Period
		want    string
	}{
		{"off", nil, ""},
		{"total and critical", Periods(30*time.Second, 10*time.Second), "20s: none -5 0 999 1000 50000; 10s: 2000000000 2000001000"},
		{"by priority, in any order", []Period{{100000, 10 * time.Second}, {0, 60 * time.Second}, {1000, 120 * time.Second}},
			"1m0s: none -5 0 999; 2m0s: 1000 50000; 10s: 2000000000 2000001000"},
		{"below the lowest", []Period{{50000, time.Second}}, "1s: none -5 0 999 1000 50000 2000000000 2000001000"},
		{"groups without pods", []Period{{0, time.Second}, {1, time.Hour}, {2, time.Second}, {critical + 2000, time.Hour}}, "1s: none -5 0; 1s: 999 1000 50000 2000000000 2000001000"},
	} {
		var out []string
		for _, g := range Groups(tc.periods, pods) {
			text := g.Grace.String() + ":"
			for _, p := range g.Pods {
				text += " " + p.Name
			}
			out = append(out, text)
		}
		if got := strings.Join(out, "; "); got != tc.want {
			t.Errorf("%s: %s\nwant %s", tc.name, got, tc.want)
		}
	}
	if Total(Periods(30*time.Second, 10*time.Second)) != 30*time.Second {
		t.Error("total")
	}
	for _, bad := range [][]Period{{{0, -1}}, {{1, 1}, {1, 2}}, Periods(time.Second, time.Minute)} {
		if Validate(bad) == nil {
			t.Errorf("%v was accepted", bad)
		}
	}
}
