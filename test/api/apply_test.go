package api

import (
	"context"
	"slices"
	"strings"
	"testing"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"

	"knarr.dev/knarr/apiserver/apitest"
)

func TestApply(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	c, ctx := s.Client(t).CoreV1().ConfigMaps("default"), t.Context()
	cm := func(kv ...string) *applycorev1.ConfigMapApplyConfiguration {
		o := applycorev1.ConfigMap("a", "default")
		data := map[string]string{}
		for i := 0; i+1 < len(kv); i += 2 {
			data[kv[i]] = kv[i+1]
		}
		return o.WithData(data)
	}
	made := must(c.Apply(ctx, cm("x", "1", "y", "1"), metav1.ApplyOptions{FieldManager: "one"}))(t)
	if len(made.ManagedFields) != 1 || made.ManagedFields[0].Manager != "one" || made.ManagedFields[0].Operation != metav1.ManagedFieldsOperationApply {
		t.Fatalf("created with %+v", made.ManagedFields)
	}
	again := must(c.Apply(ctx, cm("x", "1", "y", "1"), metav1.ApplyOptions{FieldManager: "one"}))(t)
	if again.ResourceVersion != made.ResourceVersion {
		t.Error("applying the same again made a revision")
	}
	_, err := c.Apply(ctx, cm("x", "2"), metav1.ApplyOptions{FieldManager: "two"})
	if !apierrors.IsConflict(err) || !strings.Contains(err.Error(), `conflict with "one": .data.x`) {
		t.Fatalf("a field of another: %v", err)
	}
	causes := err.(apierrors.APIStatus).Status().Details.Causes
	if len(causes) != 1 || causes[0].Type != metav1.CauseTypeFieldManagerConflict || causes[0].Field != ".data.x" {
		t.Errorf("causes %+v", causes)
	}
	forced := must(c.Apply(ctx, cm("x", "2"), metav1.ApplyOptions{FieldManager: "two", Force: true}))(t)
	if forced.Data["x"] != "2" || forced.Data["y"] != "1" {
		t.Errorf("forced: %v", forced.Data)
	}
	dropped := must(c.Apply(ctx, cm("x", "2"), metav1.ApplyOptions{FieldManager: "one"}))(t)
	if _, ok := dropped.Data["y"]; ok || dropped.Data["x"] != "2" {
		t.Errorf("a field that its only owner drops must go: %v", dropped.Data)
	}
	gone := must(c.Apply(ctx, cm(), metav1.ApplyOptions{FieldManager: "two"}))(t)
	if gone.Data["x"] != "2" {
		t.Errorf("a shared field stays while one owner wants it: %v", gone.Data)
	}
	upd := gone.DeepCopy()
	upd.Data["x"] = "3"
	must(c.Update(ctx, upd, metav1.UpdateOptions{FieldManager: "three"}))(t)
	if _, err := c.Apply(ctx, cm("x", "2"), metav1.ApplyOptions{FieldManager: "one"}); !apierrors.IsConflict(err) || !strings.Contains(err.Error(), `conflict with "three" using v1`) {
		t.Errorf("a field that an update took: %v", err)
	}
	rv := cm("x", "9").WithResourceVersion(made.ResourceVersion)
	if _, err := c.Apply(ctx, rv, metav1.ApplyOptions{FieldManager: "one", Force: true}); !apierrors.IsConflict(err) {
		t.Errorf("a stale resourceVersion: %v", err)
	}
}

// Nobody comes to own what the server itself fills in.
func TestOwnershipIsOfWhatWasSent(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	c, ctx := s.Client(t).CoreV1(), t.Context()
	svc := must(c.Services("default").Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "s"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}, metav1.CreateOptions{FieldManager: "m"}))(t)
	if svc.Spec.ClusterIP == "" {
		t.Fatal("no address")
	}
	if raw := string(svc.ManagedFields[0].FieldsV1.Raw); strings.Contains(raw, "clusterIP") || !strings.Contains(raw, `"f:ports"`) {
		t.Errorf("owned: %s", raw)
	}
	d := must(s.Client(t).AppsV1().Deployments("default").Create(ctx, deployment("d", 1), metav1.CreateOptions{FieldManager: "m"}))(t)
	if raw := string(d.ManagedFields[0].FieldsV1.Raw); strings.Contains(raw, "f:status") {
		t.Errorf("owned: %s", raw)
	}
	d.Status.ObservedGeneration = 1
	d = must(s.Client(t).AppsV1().Deployments("default").UpdateStatus(ctx, d, metav1.UpdateOptions{FieldManager: "ctl"}))(t)
	// Their order is that of the seconds in which they were written.
	at := slices.IndexFunc(d.ManagedFields, func(e metav1.ManagedFieldsEntry) bool { return e.Subresource == "status" })
	if len(d.ManagedFields) != 2 || at < 0 || string(d.ManagedFields[at].FieldsV1.Raw) != `{"f:status":{"f:observedGeneration":{}}}` {
		t.Errorf("owners: %+v", d.ManagedFields)
	}
	cleared := d.DeepCopy()
	cleared.ManagedFields = []metav1.ManagedFieldsEntry{{}}
	d = must(s.Client(t).AppsV1().Deployments("default").Update(ctx, cleared, metav1.UpdateOptions{FieldManager: "m"}))(t)
	if len(d.ManagedFields) != 0 {
		t.Errorf("an update may clear managed fields: %+v", d.ManagedFields)
	}
}

func TestPatches(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	ctx := t.Context()
	c := s.Client(t).AppsV1().Deployments("default")
	must(c.Create(ctx, deployment("d", 1), metav1.CreateOptions{}))(t)
	env := func(o interface{ GetName() string }, list []corev1.EnvVar) string {
		var out []string
		for _, e := range list {
			out = append(out, e.Name+"="+e.Value)
		}
		return strings.Join(out, " ")
	}
	for _, p := range []struct {
		typ  types.PatchType
		body string
		want string // of the first container's environment
	}{
		{types.StrategicMergePatchType, `{"spec":{"template":{"spec":{"containers":[{"name":"c","env":[{"name":"A","value":"1"}]}]}}}}`, "A=1"},
		{types.StrategicMergePatchType, `{"spec":{"template":{"spec":{"containers":[{"name":"c","env":[{"name":"B","value":"2"}]}]}}}}`, "B=2 A=1"},
		{types.StrategicMergePatchType, `{"spec":{"template":{"spec":{"containers":[{"name":"c","env":[{"name":"A","$patch":"delete"}]}]}}}}`, "B=2"},
		{types.JSONPatchType, `[{"op":"test","path":"/spec/replicas","value":1},{"op":"add","path":"/spec/template/spec/containers/0/env/-","value":{"name":"C","value":"3"}}]`, "B=2 C=3"},
		{types.MergePatchType, `{"spec":{"template":{"spec":{"containers":[{"name":"c","image":"i","env":[{"name":"D","value":"4"}]}]}}}}`, "D=4"},
	} {
		d := must(c.Patch(ctx, "d", p.typ, []byte(p.body), metav1.PatchOptions{}))(t)
		if got := env(d, d.Spec.Template.Spec.Containers[0].Env); got != p.want {
			t.Errorf("%s %s: %q, want %q", p.typ, p.body, got, p.want)
		}
	}
	for _, p := range []struct {
		typ  types.PatchType
		body string
		bad  func(error) bool
	}{
		{types.JSONPatchType, `[{"op":"test","path":"/spec/replicas","value":5}]`, apierrors.IsInvalid},
		{types.JSONPatchType, `[{"op":"remove","path":"/no/such"}]`, apierrors.IsInvalid},
		{types.JSONPatchType, `{`, apierrors.IsBadRequest},
		{types.MergePatchType, `[]`, apierrors.IsBadRequest},
		{types.MergePatchType, `{"spec":{"replicas":"many"}}`, apierrors.IsInvalid},
		{types.MergePatchType, `{"metadata":{"name":"other"}}`, apierrors.IsBadRequest},
		{types.MergePatchType, `{"metadata":{"resourceVersion":"1"}}`, apierrors.IsConflict},
		{types.StrategicMergePatchType, `{"spec":{"template":{"spec":{"containers":[{"$patch":"delete"}]}}}}`, func(err error) bool { return err != nil }},
		{types.PatchType("text/plain"), `{}`, apierrors.IsUnsupportedMediaType},
	} {
		if _, err := c.Patch(ctx, "d", p.typ, []byte(p.body), metav1.PatchOptions{}); !p.bad(err) {
			t.Errorf("%s %s: %v", p.typ, p.body, err)
		}
	}
	if _, err := c.Patch(ctx, "absent", types.MergePatchType, []byte(`{}`), metav1.PatchOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("an absent object: %v", err)
	}
}

func TestPatchesRace(t *testing.T) {
	s := apitest.Start(t, apitest.Options{Etcd: true})
	c := s.Client(t).CoreV1().ConfigMaps("default")
	must(c.Create(t.Context(), configMap("r"), metav1.CreateOptions{}))(t)
	const writers = 8
	errs := make(chan error, writers)
	for i := range writers {
		key := string(rune('a' + i))
		go func() {
			_, err := c.Patch(context.WithoutCancel(t.Context()), "r", types.MergePatchType, []byte(`{"data":{"`+key+`":"1"}}`), metav1.PatchOptions{})
			errs <- err
		}()
	}
	for range writers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if o := must(c.Get(t.Context(), "r", metav1.GetOptions{}))(t); len(o.Data) != writers {
		t.Errorf("patches were lost: %v", o.Data)
	}
}

func TestFieldValidation(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	p := newPeer(t, s.Admin(t))
	const path = "/api/v1/namespaces/default/configmaps"
	body := `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"NAME"},"dataa":{"a":"b"},"data":{"a":"1","a":"2"}}`
	send := func(name, mode string) answer {
		return p.do(t, "POST", path+"?fieldValidation="+mode, strings.Replace(body, "NAME", name, 1), "Content-Type", "application/json")
	}
	strict := send("s", "Strict")
	if st := strict.status(t); strict.code != 400 || st.Message != `ConfigMap in version "v1" cannot be handled as a ConfigMap: strict decoding error: unknown field "dataa", duplicate field "data.a"` {
		t.Errorf("strict: %d %s", strict.code, strict.body)
	}
	warned := send("w", "Warn")
	if got := warned.header.Values("Warning"); warned.code != 201 || len(got) != 2 || got[0] != `299 - "unknown field \"dataa\""` || got[1] != `299 - "duplicate field \"data.a\""` {
		t.Errorf("warn: %d %q", warned.code, got)
	}
	ignored := send("i", "Ignore")
	if got := ignored.header.Values("Warning"); ignored.code != 201 || len(got) != 0 {
		t.Errorf("ignore: %d %q", ignored.code, got)
	}
	if bad := send("b", "Maybe"); bad.code != 422 {
		t.Errorf("an unknown mode: %d %s", bad.code, bad.body)
	}
	patch := p.do(t, "PATCH", path+"/w?fieldValidation=Strict", `{"foo":1}`, "Content-Type", "application/merge-patch+json")
	if patch.code != 422 || !strings.Contains(patch.body, `strict decoding error: unknown field \"foo\"`) {
		t.Errorf("strict patch: %d %s", patch.code, patch.body)
	}
}

func TestScale(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	res := s.Registry.Resource(deploymentsGVR)
	if res.Scale == nil {
		t.Skip("the kind has no scale subresource yet")
	}
	c, ctx := s.Client(t).AppsV1().Deployments("default"), t.Context()
	must(c.Create(ctx, deployment("d", 1), metav1.CreateOptions{}))(t)
	sc := must(c.GetScale(ctx, "d", metav1.GetOptions{}))(t)
	if sc.Spec.Replicas != 1 || sc.Status.Selector != "app=d" || sc.Name != "d" {
		t.Errorf("%+v", sc)
	}
	sc.Spec.Replicas = 3
	sc = must(c.UpdateScale(ctx, "d", sc, metav1.UpdateOptions{}))(t)
	if _, err := c.UpdateScale(ctx, "d", &autoscalingv1.Scale{ObjectMeta: metav1.ObjectMeta{Name: "d", Namespace: "default", ResourceVersion: "1"}}, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
		t.Errorf("stale: %v", err)
	}
	must(c.Patch(ctx, "d", types.MergePatchType, []byte(`{"spec":{"replicas":5}}`), metav1.PatchOptions{}, "scale"))(t)
	d := must(c.Get(ctx, "d", metav1.GetOptions{}))(t)
	if *d.Spec.Replicas != 5 || d.Generation != 3 {
		t.Errorf("%d replicas in generation %d", *d.Spec.Replicas, d.Generation)
	}
	sc.Spec.Replicas, sc.ResourceVersion = -1, ""
	if _, err := c.UpdateScale(ctx, "d", sc, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("negative: %v", err)
	}
}
