package watchcache

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestDetectorNamesTheObjectAndTheChange(t *testing.T) {
	var key, change string
	reports := 0
	d := newDetector(func(k, c string) { key, change = k, c; reports++ })
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "a"}}}}
	i := NewItem("ns/p", pod, 7)
	d.came(i)
	d.all()
	if reports != 0 {
		t.Fatalf("nothing changed, reported %s: %s", key, change)
	}
	pod.Spec.Containers[0].Image = "b"
	d.all()
	if reports != 1 || key != "*v1.Pod ns/p at revision 7" || change != ".spec.containers[0].image was a, is b" {
		t.Errorf("%d reports, %s: %s", reports, key, change)
	}
	d.goes(i)
	d.all()
	if reports != 2 {
		t.Errorf("%d reports: want one when the object goes, and none after", reports)
	}
}
