package api

import (
	"fmt"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"

	"knarr.dev/knarr/apiserver/apitest"
)

// TestLifeOfAnObject goes through every verb in both encodings.
func TestLifeOfAnObject(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	for _, media := range []string{"application/json", "application/vnd.kubernetes.protobuf"} {
		t.Run(media, func(t *testing.T) {
			cfg := s.Admin(t)
			cfg.ContentType, cfg.AcceptContentTypes = media, media
			c := apitest.ClientOf(t, cfg).CoreV1().ConfigMaps("default")
			ctx := t.Context()
			made := must(c.Create(ctx, configMap("life", "a", "1"), metav1.CreateOptions{}))(t)
			if made.UID == "" || made.ResourceVersion == "" || made.CreationTimestamp.IsZero() || made.Generation != 0 {
				t.Errorf("created: %+v", made.ObjectMeta)
			}
			if _, err := c.Create(ctx, configMap("life"), metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) || err.Error() != `configmaps "life" already exists` {
				t.Errorf("created twice: %v", err)
			}
			got := must(c.Get(ctx, "life", metav1.GetOptions{}))(t)
			if got.ResourceVersion != made.ResourceVersion || got.Data["a"] != "1" {
				t.Errorf("got: %+v", got)
			}
			got.Data["a"] = "2"
			changed := must(c.Update(ctx, got, metav1.UpdateOptions{}))(t)
			if changed.ResourceVersion == got.ResourceVersion || changed.Data["a"] != "2" {
				t.Errorf("updated: %+v", changed)
			}
			same := must(c.Update(ctx, changed.DeepCopy(), metav1.UpdateOptions{}))(t)
			if same.ResourceVersion != changed.ResourceVersion {
				t.Errorf("an update without change made revision %s of %s", same.ResourceVersion, changed.ResourceVersion)
			}
			if _, err := c.Update(ctx, made, metav1.UpdateOptions{}); !apierrors.IsConflict(err) || !strings.HasSuffix(err.Error(), "the object has been modified; please apply your changes to the latest version and try again") {
				t.Errorf("stale update: %v", err)
			}
			other := changed.DeepCopy()
			other.UID, other.ResourceVersion = "other", ""
			if _, err := c.Update(ctx, other, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
				t.Errorf("update with another UID: %v", err)
			}
			uid := types.UID("wrong")
			err := c.Delete(ctx, "life", metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
			if want := fmt.Sprintf("Precondition failed: UID in precondition: wrong, UID in object meta: %s", made.UID); !apierrors.IsConflict(err) || !strings.HasSuffix(err.Error(), want) {
				t.Errorf("delete with a wrong UID: %v", err)
			}
			if err := c.Delete(ctx, "life", metav1.DeleteOptions{Preconditions: &metav1.Preconditions{ResourceVersion: &changed.ResourceVersion}}); err != nil {
				t.Errorf("delete: %v", err)
			}
			if _, err := c.Get(ctx, "life", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				t.Errorf("after delete: %v", err)
			}
			if err := c.Delete(ctx, "life", metav1.DeleteOptions{}); !apierrors.IsNotFound(err) {
				t.Errorf("delete twice: %v", err)
			}
		})
	}
}

func TestDryRunLeavesNothing(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	c, ctx := s.Client(t).CoreV1().ConfigMaps("default"), t.Context()
	dry := []string{metav1.DryRunAll}
	if o := must(c.Create(ctx, configMap("dry"), metav1.CreateOptions{DryRun: dry}))(t); o.UID == "" || o.ResourceVersion != "" {
		t.Errorf("created: %+v", o.ObjectMeta)
	}
	if _, err := c.Get(ctx, "dry", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("it exists: %v", err)
	}
	real := must(c.Create(ctx, configMap("dry", "a", "1"), metav1.CreateOptions{}))(t)
	if _, err := c.Create(ctx, configMap("dry"), metav1.CreateOptions{DryRun: dry}); !apierrors.IsAlreadyExists(err) {
		t.Errorf("create: %v", err)
	}
	next := real.DeepCopy()
	next.Data["a"] = "2"
	if o := must(c.Update(ctx, next, metav1.UpdateOptions{DryRun: dry}))(t); o.Data["a"] != "2" {
		t.Errorf("update: %+v", o)
	}
	if o := must(c.Patch(ctx, "dry", types.MergePatchType, []byte(`{"data":{"a":"3"}}`), metav1.PatchOptions{DryRun: dry}))(t); o.Data["a"] != "3" {
		t.Errorf("patch: %+v", o)
	}
	if err := c.Delete(ctx, "dry", metav1.DeleteOptions{DryRun: dry}); err != nil {
		t.Error(err)
	}
	if o := must(c.Get(ctx, "dry", metav1.GetOptions{}))(t); o.ResourceVersion != real.ResourceVersion || o.Data["a"] != "1" {
		t.Errorf("changed to %+v", o)
	}
}

func TestGeneratedNames(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	c := s.Client(t).CoreV1().ConfigMaps("default")
	long := strings.Repeat("x", 70)
	for _, prefix := range []string{"a-", long} {
		cm := configMap("")
		cm.GenerateName = prefix
		o := must(c.Create(t.Context(), cm, metav1.CreateOptions{}))(t)
		want := min(len(prefix), 58) + 5
		if len(o.Name) != want || !strings.HasPrefix(o.Name, prefix[:want-5]) || o.GenerateName != prefix {
			t.Errorf("%q made %q", prefix, o.Name)
		}
	}
}

func TestFinalizersHoldADeletion(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	c, ctx := s.Client(t).CoreV1().ConfigMaps("default"), t.Context()
	cm := configMap("held")
	cm.Finalizers = []string{"example.com/hold"}
	must(c.Create(ctx, cm, metav1.CreateOptions{}))(t)
	if err := c.Delete(ctx, "held", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	held := must(c.Get(ctx, "held", metav1.GetOptions{}))(t)
	if held.DeletionTimestamp == nil || *held.DeletionGracePeriodSeconds != 0 {
		t.Fatalf("%+v", held.ObjectMeta)
	}
	more := held.DeepCopy()
	more.Finalizers = append(more.Finalizers, "example.com/more")
	if _, err := c.Update(ctx, more, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "no new finalizers can be added if the object is being deleted") {
		t.Errorf("a new finalizer: %v", err)
	}
	if err := c.Delete(ctx, "held", metav1.DeleteOptions{}); err != nil {
		t.Errorf("second delete: %v", err)
	}
	if o := must(c.Get(ctx, "held", metav1.GetOptions{}))(t); o.ResourceVersion != held.ResourceVersion {
		t.Error("a second delete changed the object")
	}
	must(c.Patch(ctx, "held", types.JSONPatchType, []byte(`[{"op":"remove","path":"/metadata/finalizers"}]`), metav1.PatchOptions{}))(t)
	if _, err := c.Get(ctx, "held", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("after the last finalizer: %v", err)
	}
}

func deployment(name string, replicas int32) *appsv1.Deployment {
	labels := map[string]string{"app": name}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Labels: labels},
		Spec: appsv1.DeploymentSpec{Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}},
	}
}

func TestPropagationBecomesFinalizers(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	c, ctx := s.Client(t).AppsV1().Deployments("default"), t.Context()
	for policy, want := range map[metav1.DeletionPropagation]string{
		metav1.DeletePropagationForeground: metav1.FinalizerDeleteDependents,
		metav1.DeletePropagationOrphan:     metav1.FinalizerOrphanDependents,
		metav1.DeletePropagationBackground: "",
	} {
		name := strings.ToLower(string(policy))
		must(c.Create(ctx, deployment(name, 1), metav1.CreateOptions{}))(t)
		if err := c.Delete(ctx, name, metav1.DeleteOptions{PropagationPolicy: &policy}); err != nil {
			t.Fatal(err)
		}
		o, err := c.Get(ctx, name, metav1.GetOptions{})
		if want == "" {
			if !apierrors.IsNotFound(err) {
				t.Errorf("%s: %v", policy, err)
			}
			continue
		}
		if err != nil || len(o.Finalizers) != 1 || o.Finalizers[0] != want || o.DeletionTimestamp == nil || o.Generation != 2 {
			t.Errorf("%s: %v %+v", policy, err, o.ObjectMeta)
		}
	}
	bad := metav1.DeletionPropagation("Sideways")
	if err := c.Delete(ctx, "x", metav1.DeleteOptions{PropagationPolicy: &bad}); !apierrors.IsInvalid(err) {
		t.Errorf("an unknown policy: %v", err)
	}
}

func TestStatusIsAPartOfItsOwn(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	c, ctx := s.Client(t).AppsV1().Deployments("default"), t.Context()
	d := deployment("d", 1)
	d.Status.Replicas = 7
	made := must(c.Create(ctx, d, metav1.CreateOptions{}))(t)
	if made.Status.Replicas != 0 || made.Generation != 1 {
		t.Errorf("created with status %+v, generation %d", made.Status, made.Generation)
	}
	two := int32(2)
	made.Status.Replicas, made.Spec.Replicas = 7, &two
	st := must(c.UpdateStatus(ctx, made.DeepCopy(), metav1.UpdateOptions{}))(t)
	if st.Status.Replicas != 7 || *st.Spec.Replicas != 1 || st.Generation != 1 {
		t.Errorf("status update: %+v %+v generation %d", st.Status, st.Spec.Replicas, st.Generation)
	}
	st.Status.Replicas, st.Spec.Replicas = 9, &two
	sp := must(c.Update(ctx, st, metav1.UpdateOptions{}))(t)
	if sp.Status.Replicas != 7 || *sp.Spec.Replicas != 2 || sp.Generation != 2 {
		t.Errorf("update: %+v %+v generation %d", sp.Status, *sp.Spec.Replicas, sp.Generation)
	}
	p := must(c.Patch(ctx, "d", types.MergePatchType, []byte(`{"metadata":{"annotations":{"a":"b"},"labels":{"x":"y"}},"status":{"replicas":3}}`), metav1.PatchOptions{}, "status"))(t)
	if p.Annotations["a"] != "b" || p.Labels["x"] != "" || p.Status.Replicas != 3 {
		t.Errorf("status patch: %+v %+v", p.ObjectMeta, p.Status)
	}
	got := must(c.Get(ctx, "d", metav1.GetOptions{}))(t)
	if got.ResourceVersion != p.ResourceVersion {
		t.Error("get is not what the patch answered")
	}
}

func TestSelectorsAndDeleteCollection(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	c, ctx := s.Client(t).CoreV1().ConfigMaps("default"), t.Context()
	for i := range 6 {
		cm := configMap(fmt.Sprintf("c%d", i))
		cm.Labels = map[string]string{"parity": []string{"even", "odd"}[i%2], "n": fmt.Sprint(i)}
		must(c.Create(ctx, cm, metav1.CreateOptions{}))(t)
	}
	for sel, want := range map[string]string{
		"parity=even": "c0 c2 c4", "parity!=even": "c1 c3 c5", "n in (1,2),parity": "c1 c2", "!parity": "", "n notin (0,1,2,3)": "c4 c5", "n>3": "c4 c5",
	} {
		if got := names(must(c.List(ctx, metav1.ListOptions{LabelSelector: sel}))(t)); got != want {
			t.Errorf("%s selects %q, want %q", sel, got, want)
		}
	}
	for sel, want := range map[string]string{"metadata.name=c3": "c3", "metadata.name!=c3,metadata.namespace=default": "c0 c1 c2 c4 c5", "metadata.namespace=x": ""} {
		if got := names(must(c.List(ctx, metav1.ListOptions{FieldSelector: sel}))(t)); got != want {
			t.Errorf("%s selects %q, want %q", sel, got, want)
		}
	}
	if err := c.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "parity=odd"}); err != nil {
		t.Fatal(err)
	}
	if got := names(must(c.List(ctx, metav1.ListOptions{}))(t)); got != "c0 c2 c4" {
		t.Errorf("after deletecollection: %s", got)
	}
	if _, err := c.List(ctx, metav1.ListOptions{LabelSelector: "a in ("}); !apierrors.IsBadRequest(err) {
		t.Errorf("a broken selector: %v", err)
	}
}

func names(l *corev1.ConfigMapList) string {
	var out []string
	for _, i := range l.Items {
		out = append(out, i.Name)
	}
	return strings.Join(out, " ")
}

func TestOtherClients(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	gvr := schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	ctx := t.Context()
	dyn := must(dynamic.NewForConfig(s.Admin(t)))(t).Resource(gvr).Namespace("default")
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "u", "labels": map[string]any{"l": "1"}}, "data": map[string]any{"k": "v"}}}
	made := must(dyn.Create(ctx, u, metav1.CreateOptions{}))(t)
	if v, _, _ := unstructured.NestedString(made.Object, "data", "k"); v != "v" || made.GetKind() != "ConfigMap" {
		t.Errorf("%v", made)
	}
	if l := must(dyn.List(ctx, metav1.ListOptions{}))(t); len(l.Items) != 1 || l.GetKind() != "ConfigMapList" || l.Items[0].GetKind() != "ConfigMap" {
		t.Errorf("%v", l)
	}
	meta := must(metadata.NewForConfig(s.Admin(t)))(t).Resource(gvr).Namespace("default")
	o := must(meta.Get(ctx, "u", metav1.GetOptions{}))(t)
	if o.Labels["l"] != "1" || o.ResourceVersion != made.GetResourceVersion() {
		t.Errorf("%+v", o)
	}
	if l := must(meta.List(ctx, metav1.ListOptions{}))(t); len(l.Items) != 1 || l.Items[0].Name != "u" || l.ResourceVersion == "" {
		t.Errorf("%+v", l)
	}
}

// A patch needs no resourceVersion, also where a replacement does.
func TestPatchOfAGuardedKind(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	admin := newPeer(t, s.Admin(t))
	const leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases"
	const lease = `{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":"l"},"spec":{"holderIdentity":"a"}}`
	if a := admin.do(t, "POST", leases, lease, "Content-Type", "application/json"); a.code != 201 {
		t.Fatal(a.code, a.body)
	}
	for media, body := range map[string]string{
		"application/merge-patch+json":           `{"metadata":{"annotations":{"a":"b"}}}`,
		"application/strategic-merge-patch+json": `{"spec":{"holderIdentity":"b"}}`,
		"application/json-patch+json":            `[{"op":"replace","path":"/spec/holderIdentity","value":"c"}]`,
	} {
		if a := admin.do(t, "PATCH", leases+"/l", body, "Content-Type", media); a.code != 200 {
			t.Errorf("%s: %d %s", media, a.code, a.body)
		}
	}
	if a := admin.do(t, "PATCH", leases+"/l?fieldManager=m&force=true", lease, "Content-Type", "application/apply-patch+yaml"); a.code != 200 {
		t.Errorf("apply: %d %s", a.code, a.body)
	}
	if a := admin.do(t, "PUT", leases+"/l", lease, "Content-Type", "application/json"); a.code != 422 {
		t.Errorf("a replacement without resourceVersion: %d %s", a.code, a.body)
	}
}
