package agent

import (
	"errors"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/client/clienttest"
)

func podNaming(uid string, configMaps ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: uid, UID: types.UID(uid)}}
	c := corev1.Container{Name: "c"}
	for _, n := range configMaps {
		c.EnvFrom = append(c.EnvFrom, corev1.EnvFromSource{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: n}}})
	}
	p.Spec.Containers = []corev1.Container{c}
	return p
}

// A node that follows objects one by one hears of those that its pods name, from
// the first of them until the last, and of no others.
func TestEachObjectIsFollowedWhilePodsNameIt(t *testing.T) {
	cl := clienttest.New()
	o := newObjects(cl, true)
	events := make(chan string, 16)
	end := o.follow(func(e client.Event) { events <- e.Object.GetName() })
	defer end()
	make := func(name string) {
		t.Helper()
		if _, err := cl.Create(t.Context(), client.Key{Resource: client.ConfigMaps, Namespace: "a", Name: name}, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name}}); err != nil {
			t.Fatal(err)
		}
	}
	one, two := podNaming("1", "x", "y"), podNaming("2", "y")
	o.hold(one)
	o.hold(one) // an update of the pod
	o.hold(two)
	for _, name := range []string{"other", "y"} {
		make(name)
	}
	if got := <-events; got != "y" {
		t.Errorf("heard of %s", got)
	}
	o.release(one.UID)
	if _, followed := o.refs[ref{client.ConfigMaps, "a", "x"}]; followed || len(o.refs) != 1 {
		t.Errorf("still followed: %v", o.refs)
	}
	cl.React = func(verb string, _ client.Key, _ client.Object) error { return errors.New("only reads") }
	if _, err := o.ConfigMap(t.Context(), "a", "y"); err != nil {
		t.Errorf("a followed object: %v", err)
	}
	if _, err := o.ConfigMap(t.Context(), "a", "other"); err != nil {
		t.Errorf("an object that no pod names: %v", err)
	}
	o.release(two.UID)
	if len(o.refs)+len(o.pods) != 0 {
		t.Errorf("left: %v, %v", o.refs, o.pods)
	}
}
