package api

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"sigs.k8s.io/yaml"

	"knarr.dev/knarr/apiserver/apitest"
)

// warnings keeps what the server warns of.
type warnings struct{ texts []string }

// HandleWarningHeader implements rest.WarningHandler.
func (w *warnings) HandleWarningHeader(_ int, _, text string) { w.texts = append(w.texts, text) }

// old is a server and a client that finds resources as kubectl does.
type old struct {
	*apitest.Server
	dynamic.Interface
	mapper interface {
		RESTMapping(gk schema.GroupKind, versions ...string) (*restMapping, error)
	}
	warned *warnings
}

type restMapping struct {
	resource   schema.GroupVersionResource
	namespaced bool
}

// discovered maps kinds by the server's discovery.
type discovered struct {
	groups []*restmapper.APIGroupResources
}

func (d discovered) RESTMapping(gk schema.GroupKind, versions ...string) (*restMapping, error) {
	m, err := restmapper.NewDiscoveryRESTMapper(d.groups).RESTMapping(gk, versions...)
	if err != nil {
		return nil, err
	}
	return &restMapping{m.Resource, m.Scope.Name() == "namespace"}, nil
}

func startOld(t *testing.T) *old {
	s := apitest.Start(t, apitest.Options{})
	cfg := s.Admin(t)
	w := &warnings{}
	cfg.WarningHandler = w
	c, err := dynamic.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	d, err := discovery.NewDiscoveryClientForConfig(rest.CopyConfig(s.Admin(t)))
	if err != nil {
		t.Fatal(err)
	}
	groups, err := restmapper.GetAPIGroupResources(d)
	if err != nil {
		t.Fatal(err)
	}
	return &old{Server: s, Interface: c, mapper: discovered{groups}, warned: w}
}

// at is where an object's kind is served.
func (o *old) at(t *testing.T, u *unstructured.Unstructured) dynamic.ResourceInterface {
	t.Helper()
	gvk := u.GroupVersionKind()
	m, err := o.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if err != nil {
		t.Fatal(err)
	}
	if !m.namespaced {
		return o.Resource(m.resource)
	}
	return o.Resource(m.resource).Namespace("default")
}

func documents(t *testing.T, text []byte) []*unstructured.Unstructured {
	t.Helper()
	var out []*unstructured.Unstructured
	for _, doc := range bytes.Split(text, []byte("\n---\n")) {
		u := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(doc, &u.Object); err != nil {
			t.Fatal(err)
		}
		out = append(out, u)
	}
	return out
}

// TestManifestsOf2016 applies manifests as users wrote them then, in each way in
// which manifests are applied, and reads them in the old and in today's version.
func TestManifestsOf2016(t *testing.T) {
	files, err := filepath.Glob("testdata/legacy/*.yaml")
	if err != nil || len(files) < 3 {
		t.Fatalf("manifests: %v, %v", files, err)
	}
	variables := strings.NewReplacer("${TARGET_ROLE}", "blue", "${TOMCAT_VERSION}", "8.5")
	ways := map[string]func(context.Context, dynamic.ResourceInterface, *unstructured.Unstructured) error{
		"create": func(ctx context.Context, r dynamic.ResourceInterface, u *unstructured.Unstructured) error {
			_, err := r.Create(ctx, u, metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict})
			return err
		},
		"server-side apply": func(ctx context.Context, r dynamic.ResourceInterface, u *unstructured.Unstructured) error {
			for range 2 { // the second time changes nothing
				if _, err := r.Apply(ctx, u.GetName(), u, metav1.ApplyOptions{FieldManager: "kubectl"}); err != nil {
					return err
				}
			}
			return nil
		},
	}
	for way, apply := range ways {
		t.Run(way, func(t *testing.T) {
			o := startOld(t)
			for _, f := range files {
				text, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				for _, u := range documents(t, []byte(variables.Replace(string(text)))) {
					if err := apply(t.Context(), o.at(t, u), u); err != nil {
						t.Fatalf("%s: %s %s: %v", f, u.GroupVersionKind(), u.GetName(), err)
					}
				}
			}
			c := o.Client(t).AppsV1()
			rolling := must(c.Deployments("default").Get(t.Context(), "tomcat-deployment-rolling-update", metav1.GetOptions{}))(t)
			labels := map[string]string{"app": "tomcat", "role": "rolling-update"}
			if s := rolling.Spec; s.Strategy.RollingUpdate.MaxSurge.String() != "50%" || s.Strategy.RollingUpdate.MaxUnavailable.String() != "1" ||
				!reflect.DeepEqual(s.Selector.MatchLabels, labels) || *s.RevisionHistoryLimit != 1<<31-1 || *s.ProgressDeadlineSeconds != 1<<31-1 {
				t.Errorf("rolling update: %+v", s)
			}
			if !reflect.DeepEqual(rolling.Labels, labels) {
				t.Errorf("labels of the template: %v", rolling.Labels)
			}
			pets := must(c.StatefulSets("default").Get(t.Context(), "test-petset", metav1.GetOptions{}))(t)
			if s := pets.Spec; s.UpdateStrategy.Type != appsv1.OnDeleteStatefulSetStrategyType || s.Selector.MatchLabels["app"] != "nginx" ||
				*s.Replicas != 2 || s.VolumeClaimTemplates[0].Spec.StorageClassName != nil {
				t.Errorf("pet set: %+v", s)
			}
			pet := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "apps/v1alpha1", "kind": "PetSet"}}
			got := must(o.at(t, pet).Get(t.Context(), "test-petset", metav1.GetOptions{}))(t)
			if name, _, _ := unstructured.NestedString(got.Object, "spec", "serviceName"); name != "test-service" || got.GetKind() != "PetSet" {
				t.Errorf("read as it was written: %+v", got.Object)
			}
			want := "extensions/v1beta1 Deployment is deprecated in v1.8+, unavailable in v1.16+; use apps/v1 Deployment"
			if !slices.Contains(o.warned.texts, want) {
				t.Errorf("warnings: %q, want %q", o.warned.texts, want)
			}
		})
	}
}

// TestOldVersionsAreRead goes through an old version's verbs, and looks at each
// write in today's version.
func TestOldVersionsAreRead(t *testing.T) {
	o := startOld(t)
	ctx := t.Context()
	u := documents(t, []byte(`
apiVersion: extensions/v1beta1
kind: Deployment
metadata: {name: d}
spec:
  replicas: 1
  rollbackTo: {revision: 3}
  template:
    metadata:
      labels: {app: d}
      annotations:
        pod.beta.kubernetes.io/init-containers: '[{"name": "first", "image": "i"}]'
        scheduler.alpha.kubernetes.io/tolerations: '[{"key": "dedicated", "operator": "Exists"}]'
        scheduler.alpha.kubernetes.io/affinity: '{"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}]}}}'
    spec: {containers: [{name: c, image: i}]}`))[0]
	r := o.at(t, u)
	made := must(r.Create(ctx, u, metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}))(t)
	today := o.Client(t).AppsV1().Deployments("default")
	d := must(today.Get(ctx, "d", metav1.GetOptions{}))(t)
	if s := d.Spec.Template.Spec; len(s.InitContainers) != 1 || s.InitContainers[0].Name != "first" || len(s.Tolerations) != 1 || s.Affinity == nil {
		t.Errorf("fields of annotations: %+v", s)
	}
	if err := unstructured.SetNestedField(made.Object, int64(3), "spec", "replicas"); err != nil {
		t.Fatal(err)
	}
	must(r.Update(ctx, made, metav1.UpdateOptions{}))(t)
	for _, p := range []struct {
		media types.PatchType
		data  string
	}{
		{types.MergePatchType, `{"metadata":{"labels":{"merge":"1"}}}`},
		{types.StrategicMergePatchType, `{"spec":{"template":{"spec":{"containers":[{"name":"c","env":[{"name":"A","value":"1"}]}]}}}}`},
		{types.JSONPatchType, `[{"op":"add","path":"/spec/paused","value":true}]`},
	} {
		must(r.Patch(ctx, "d", p.media, []byte(p.data), metav1.PatchOptions{}))(t)
	}
	d = must(today.Get(ctx, "d", metav1.GetOptions{}))(t)
	if *d.Spec.Replicas != 3 || d.Labels["merge"] != "1" || len(d.Spec.Template.Spec.Containers[0].Env) != 1 || d.Spec.Template.Spec.Containers[0].Image != "i" || !d.Spec.Paused {
		t.Errorf("after update and patches: %+v", d)
	}
	// What only today's version can say survives an old client.
	before := d.DeepCopy()
	got := must(r.Get(ctx, "d", metav1.GetOptions{}))(t)
	must(r.Update(ctx, got, metav1.UpdateOptions{}))(t)
	after := must(today.Get(ctx, "d", metav1.GetOptions{}))(t)
	if !equality.Semantic.DeepEqual(before.Spec, after.Spec) || after.Generation != before.Generation {
		t.Errorf("an old client that writes what it has read changes\n%+v\nto\n%+v", before.Spec, after.Spec)
	}
	list := must(r.List(ctx, metav1.ListOptions{LabelSelector: "merge=1"}))(t)
	if len(list.Items) != 1 || list.Items[0].GetAPIVersion() != "extensions/v1beta1" {
		t.Errorf("list: %+v", list.Items)
	}
	w := must(r.Watch(ctx, metav1.ListOptions{ResourceVersion: after.ResourceVersion}))(t)
	defer w.Stop()
	if err := r.Delete(ctx, "d", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if ev := <-w.ResultChan(); ev.Type != "DELETED" || ev.Object.GetObjectKind().GroupVersionKind().Group != "extensions" {
		t.Errorf("watch: %+v", ev)
	}
	if _, err := today.Get(ctx, "d", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("deleted: %v", err)
	}
}

// TestOldDefinition: a custom resource of 2018 is served.
func TestOldDefinition(t *testing.T) {
	o := startOld(t)
	ctx := t.Context()
	u := documents(t, []byte(`
apiVersion: apiextensions.k8s.io/v1beta1
kind: CustomResourceDefinition
metadata: {name: crontabs.stable.example.com}
spec:
  group: stable.example.com
  version: v1
  scope: Namespaced
  names: {plural: crontabs, singular: crontab, kind: CronTab, shortNames: [ct]}
  additionalPrinterColumns: [{name: Spec, type: string, JSONPath: .spec.cronSpec}]
  validation:
    openAPIV3Schema:
      properties:
        spec:
          properties:
            cronSpec: {type: string, pattern: '^(\d+|\*)(/\d+)?(\s+(\d+|\*)(/\d+)?){4}$'}
            replicas: {type: integer, minimum: 1}`))[0]
	defs := o.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1beta1", Resource: "customresourcedefinitions"})
	w := must(defs.Watch(ctx, metav1.ListOptions{}))(t)
	defer w.Stop()
	must(defs.Create(ctx, u, metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}))(t)
	for established := false; !established; {
		d, err := runtime.DefaultUnstructuredConverter.ToUnstructured((<-w.ResultChan()).Object)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := json.Marshal(d["status"])
		established = strings.Contains(string(b), `"status":"True","type":"Established"`)
	}
	tabs := o.Resource(schema.GroupVersionResource{Group: "stable.example.com", Version: "v1", Resource: "crontabs"}).Namespace("default")
	tab := documents(t, []byte("apiVersion: stable.example.com/v1\nkind: CronTab\nmetadata: {name: t}\nspec: {cronSpec: '* * * * */5', other: kept}"))[0]
	got := must(tabs.Create(ctx, tab, metav1.CreateOptions{}))(t)
	if other, _, _ := unstructured.NestedString(got.Object, "spec", "other"); other != "kept" {
		t.Errorf("v1beta1 keeps fields that it does not know: %+v", got.Object)
	}
	tab.SetName("bad")
	_ = unstructured.SetNestedField(tab.Object, "* *", "spec", "cronSpec")
	if _, err := tabs.Create(ctx, tab, metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("a bad object: %v", err)
	}
}
