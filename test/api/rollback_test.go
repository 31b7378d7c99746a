package api

import (
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	appsv1beta1 "k8s.io/api/apps/v1beta1"
	extensionsv1beta1 "k8s.io/api/extensions/v1beta1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/util/retry"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/apiserver/apitest"
	dep "knarr.dev/knarr/controller/deployment"
)

// What kubectl rollout undo was before apps/v1.
func TestRollback(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	control(t, s, clock.RealClock{}, dep.New())
	c, ctx := s.Client(t), t.Context()
	deployments := c.AppsV1().Deployments("default")
	w := must(deployments.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=d"}))(t)
	defer w.Stop()
	at := func(revision, image string) *appsv1.Deployment {
		t.Helper()
		return until(t, "not at revision "+revision, w, func(_ watch.EventType, d *appsv1.Deployment) bool {
			_, asked := d.Annotations[appsv1.DeprecatedRollbackTo]
			return !asked && d.Annotations["deployment.kubernetes.io/revision"] == revision && d.Spec.Template.Spec.Containers[0].Image == image
		})
	}
	d := deployment("d", 0)
	d.Annotations = map[string]string{"note": "one"}
	first := d.Spec.Template.Spec.Containers[0].Image
	must(deployments.Create(ctx, d, metav1.CreateOptions{}))(t)
	at("1", first)
	change := func(image string) {
		t.Helper()
		p := `{"metadata":{"annotations":{"note":"` + image + `"}},"spec":{"template":{"spec":{"containers":[{"name":"` + d.Spec.Template.Spec.Containers[0].Name + `","image":"` + image + `"}]}}}}`
		must(deployments.Patch(ctx, "d", types.StrategicMergePatchType, []byte(p), metav1.PatchOptions{}))(t)
	}
	change("two")
	at("2", "two")
	change("three")
	at("3", "three")
	old := c.ExtensionsV1beta1().Deployments("default")
	if err := old.Rollback(ctx, &extensionsv1beta1.DeploymentRollback{Name: "d", RollbackTo: extensionsv1beta1.RollbackConfig{Revision: 1}, UpdatedAnnotations: map[string]string{"why": "it"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if back := at("4", first); back.Annotations["note"] != "one" || strings.Contains(strings.Join(keysOf(back.Spec.Template.Labels), " "), "pod-template-hash") {
		t.Errorf("rolled back: %v %v", back.Annotations, back.Spec.Template.Labels)
	}
	// 0 is the revision before: 3.
	p := newPeer(t, s.Admin(t))
	a := p.do(t, "POST", "/apis/apps/v1beta1/namespaces/default/deployments/d/rollback", `{"kind":"DeploymentRollback","apiVersion":"apps/v1beta1","name":"d","rollbackTo":{"revision":0}}`)
	if o := a.object(t); a.code != 201 || o["kind"] != "Status" || o["message"] != `rollback request for deployment "d" succeeded` {
		t.Errorf("%d %v", a.code, o)
	}
	at("5", "three")
	// By the field of the old versions.
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error { // the controller writes too
		view, err := c.AppsV1beta1().Deployments("default").Get(ctx, "d", metav1.GetOptions{})
		if err != nil {
			return err
		}
		view.Spec.RollbackTo = &appsv1beta1.RollbackConfig{Revision: 2}
		_, err = c.AppsV1beta1().Deployments("default").Update(ctx, view, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	at("6", "two")
	// A revision that nobody has: the wish goes, nothing else.
	must(deployments.Patch(ctx, "d", types.MergePatchType, []byte(`{"metadata":{"annotations":{"deprecated.deployment.rollback.to":"77"}}}`), metav1.PatchOptions{}))(t)
	at("6", "two")
	for name, body := range map[string]string{"no name": `{}`, "another": `{"name":"x"}`} {
		if a := p.do(t, "POST", "/apis/extensions/v1beta1/namespaces/default/deployments/d/rollback", body); a.code != 422 && a.code != 400 {
			t.Errorf("%s: %d %s", name, a.code, a.body)
		}
	}
	if err := old.Rollback(ctx, &extensionsv1beta1.DeploymentRollback{Name: "none"}, metav1.CreateOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("of none: %v", err)
	}
	if a := p.do(t, "POST", "/apis/apps/v1/namespaces/default/deployments/d/rollback", `{"name":"d"}`); a.code != 404 {
		t.Errorf("of apps/v1: %d", a.code)
	}
}

func keysOf(m map[string]string) (out []string) {
	for k := range m {
		out = append(out, k)
	}
	return out
}
