package legacy_test

import (
	"math/rand"
	"testing"

	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	"k8s.io/apimachinery/pkg/api/equality"
	genericfuzzer "k8s.io/apimachinery/pkg/apis/meta/fuzzer"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/diff"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"

	"knarr.dev/knarr/api"
	"knarr.dev/knarr/api/kind"
)

// kinds returns the old versions and the kinds that they are views on.
func kinds() (old []*kind.Kind, hubs map[schema.GroupVersionKind]*kind.Kind) {
	hubs = map[schema.GroupVersionKind]*kind.Kind{}
	for _, k := range api.Kinds() {
		hubs[k.GVK()] = k
		if k.Deprecated != "" && !k.Hub.Empty() {
			old = append(old, k)
		}
	}
	return old, hubs
}

// there converts an object of today to an old version and back.
func there(t *testing.T, k *kind.Kind, hub schema.GroupVersionKind, o kind.Object) (old, back kind.Object) {
	t.Helper()
	old, err := k.FromHub(o)
	if err != nil {
		t.Fatalf("%s: %v", k.GVK(), err)
	}
	if back, err = k.ToHub(old); err != nil {
		t.Fatalf("%s: %v", k.GVK(), err)
	}
	back.GetObjectKind().SetGroupVersionKind(hub)
	return old, back
}

// TestOldVersionsLoseNothing converts random objects of today to each old version
// and back. Their fields are filled, so that there is nothing to default.
func TestOldVersionsLoseNothing(t *testing.T) {
	const seed, times = 7, 8
	f := fuzzer.FuzzerFor(genericfuzzer.Funcs, rand.NewSource(seed), serializer.NewCodecFactory(scheme.Scheme)).NilChance(0).NumElements(1, 2)
	old, hubs := kinds()
	if len(old) < 30 {
		t.Fatalf("%d old versions", len(old))
	}
	for _, k := range old {
		switch k.Kind {
		case "Ingress", "HorizontalPodAutoscaler", "CustomResourceDefinition":
			continue // values that exclude each other: see TestKeptByOldVersions
		}
		hub := hubs[k.Hub]
		for range times {
			o := hub.New()
			f.Fill(o)
			o.SetLabels(map[string]string{"a": "b"})
			o.SetAnnotations(nil)
			o.GetObjectKind().SetGroupVersionKind(hub.GVK())
			if hub.Default != nil {
				hub.Default(o)
			}
			_, back := there(t, k, hub.GVK(), o)
			if hub.Default != nil {
				hub.Default(back)
			}
			if !equality.Semantic.DeepEqual(o, back) {
				t.Errorf("%s (seed %d):\n%s", k.GVK(), seed, diff.Diff(o, back))
				break
			}
		}
	}
}

func read(t *testing.T, hubs map[schema.GroupVersionKind]*kind.Kind, text string) kind.Object {
	t.Helper()
	var head struct{ APIVersion, Kind string }
	if err := yaml.Unmarshal([]byte(text), &head); err != nil {
		t.Fatal(err)
	}
	k := hubs[schema.FromAPIVersionAndKind(head.APIVersion, head.Kind)]
	if k == nil {
		t.Fatalf("no kind %v", head)
	}
	o := k.New()
	if err := yaml.UnmarshalStrict([]byte(text), o); err != nil {
		t.Fatal(err)
	}
	return o
}

// TestKeptByOldVersions is TestOldVersionsLoseNothing for kinds whose fields
// exclude each other.
func TestKeptByOldVersions(t *testing.T) {
	old, hubs := kinds()
	for _, text := range []string{`
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: i}
spec:
  ingressClassName: c
  defaultBackend: {service: {name: s, port: {number: 80}}}
  tls: [{hosts: [a.example], secretName: t}]
  rules:
  - host: a.example
    http:
      paths:
      - {path: /, pathType: Prefix, backend: {service: {name: s, port: {name: web}}}}
      - {path: /b, pathType: Exact, backend: {resource: {apiGroup: x, kind: Bucket, name: b}}}
status: {loadBalancer: {ingress: [{ip: 192.0.2.1, ports: [{port: 80, protocol: TCP}]}]}}
`, `
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: h}
spec:
  minReplicas: 1
  maxReplicas: 3
  scaleTargetRef: {kind: Deployment, name: d, apiVersion: apps/v1}
  behavior: {scaleDown: {selectPolicy: Disabled}}
  metrics:
  - {type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}}
  - {type: Resource, resource: {name: memory, target: {type: AverageValue, averageValue: 1Gi}}}
  - {type: ContainerResource, containerResource: {name: cpu, container: c, target: {type: Utilization, averageUtilization: 50}}}
  - {type: Pods, pods: {metric: {name: m, selector: {matchLabels: {a: b}}}, target: {type: AverageValue, averageValue: "3"}}}
  - {type: Object, object: {metric: {name: m}, describedObject: {kind: Service, name: s, apiVersion: v1}, target: {type: Value, value: "3"}}}
  - {type: Object, object: {metric: {name: m}, describedObject: {kind: Service, name: s, apiVersion: v1}, target: {type: AverageValue, averageValue: "3"}}}
  - {type: External, external: {metric: {name: m, selector: {matchLabels: {a: b}}}, target: {type: Value, value: "3"}}}
status:
  desiredReplicas: 2
  currentReplicas: 1
  conditions: [{type: AbleToScale, status: "True"}]
  currentMetrics:
  - {type: Resource, resource: {name: cpu, current: {averageUtilization: 5, averageValue: 10m}}}
  - {type: Pods, pods: {metric: {name: m}, current: {averageValue: "3"}}}
  - {type: Object, object: {metric: {name: m}, describedObject: {kind: Service, name: s}, current: {value: "3"}}}
  - {type: External, external: {metric: {name: m}, current: {value: "3"}}}
`, `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: as.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: as, kind: A}
  conversion: {strategy: Webhook, webhook: {conversionReviewVersions: [v1], clientConfig: {url: "https://x"}}}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    additionalPrinterColumns: [{name: A, type: string, jsonPath: .spec.a}]
    selectableFields: [{jsonPath: .spec.a}]
    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {a: {type: string}, any: {x-kubernetes-int-or-string: true}}}}}}
status: {storedVersions: [v1]}
`, `
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: all}
spec: {minAvailable: 1, selector: {}}
`} {
		o := read(t, hubs, text)
		gvk := o.GetObjectKind().GroupVersionKind()
		found := 0
		for _, k := range old {
			if k.Hub != gvk {
				continue
			}
			found++
			if _, back := there(t, k, gvk, o); !equality.Semantic.DeepEqual(o, back) && gvk.Kind != "PodDisruptionBudget" {
				t.Errorf("%s:\n%s", k.GVK(), diff.Diff(o, back))
			}
		}
		if found == 0 {
			t.Errorf("%s has no old version", gvk)
		}
	}
}

// TestEmptySelectorOfBudgets: it meant nothing once, and means everything now.
func TestEmptySelectorOfBudgets(t *testing.T) {
	_, hubs := kinds()
	k := hubs[schema.GroupVersionKind{Group: "policy", Version: "v1beta1", Kind: "PodDisruptionBudget"}]
	old := read(t, hubs, "apiVersion: policy/v1beta1\nkind: PodDisruptionBudget\nmetadata: {name: none}\nspec: {selector: {}}\n")
	hub, err := k.ToHub(old)
	if err != nil {
		t.Fatal(err)
	}
	hub.GetObjectKind().SetGroupVersionKind(k.Hub)
	b, _ := yaml.Marshal(hub)
	want := read(t, hubs, "apiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata: {name: none}\nspec: {selector: {matchExpressions: [{key: pdb.kubernetes.io/deprecated-v1beta1-empty-selector-match, operator: Exists}]}}\n")
	if !equality.Semantic.DeepEqual(hub, want) {
		t.Errorf("got\n%s", b)
	}
	back, err := k.FromHub(hub)
	if err != nil {
		t.Fatal(err)
	}
	back.GetObjectKind().SetGroupVersionKind(k.GVK())
	if !equality.Semantic.DeepEqual(back, old) {
		t.Errorf("back:\n%s", diff.Diff(old, back))
	}
}

// TestWarnings: in Kubernetes' words.
func TestWarnings(t *testing.T) {
	_, hubs := kinds()
	for gvk, want := range map[schema.GroupVersionKind]string{
		{Group: "extensions", Version: "v1beta1", Kind: "Ingress"}:                  "extensions/v1beta1 Ingress is deprecated in v1.14+, unavailable in v1.22+; use networking.k8s.io/v1 Ingress",
		{Group: "policy", Version: "v1beta1", Kind: "PodDisruptionBudget"}:          "policy/v1beta1 PodDisruptionBudget is deprecated in v1.21+, unavailable in v1.25+; use policy/v1 PodDisruptionBudget",
		{Group: "autoscaling", Version: "v2beta2", Kind: "HorizontalPodAutoscaler"}: "autoscaling/v2beta2 HorizontalPodAutoscaler is deprecated in v1.23+, unavailable in v1.26+; use autoscaling/v2 HorizontalPodAutoscaler",
	} {
		if k := hubs[gvk]; k == nil || k.Deprecated != want {
			t.Errorf("%s: %+v", gvk, k)
		}
	}
}
