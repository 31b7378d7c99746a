package api_test

import (
	"testing"

	"k8s.io/apimachinery/pkg/api/equality"

	"knarr.dev/knarr/api"
)

// A view's client that reads an object and writes it back changes nothing.
func TestViewsLoseNothing(t *testing.T) {
	for _, text := range []string{`
apiVersion: v1
kind: Event
metadata: {name: e, namespace: d, annotations: {a: b}}
involvedObject: {kind: Pod, name: p, namespace: d}
type: Warning
reason: BackOff
message: text
count: 4
firstTimestamp: "2026-01-02T02:04:05Z"
source: {component: kubelet, host: node-1}
series: {count: 3, lastObservedTime: "2026-01-02T02:04:05.000001Z"}
reportingComponent: kubelet
action: Pull
`, `
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: h, namespace: d, annotations: {a: b}}
spec:
  maxReplicas: 3
  minReplicas: 1
  scaleTargetRef: {kind: Deployment, name: d, apiVersion: apps/v1}
  behavior: {scaleDown: {selectPolicy: Disabled}}
  metrics:
  - {type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}}
  - {type: Resource, resource: {name: memory, target: {type: Utilization, averageUtilization: 70}}}
status:
  desiredReplicas: 2
  conditions: [{type: AbleToScale, status: "True"}]
`} {
		hub, want := decode(t, text)
		found := false
		for _, k := range api.Kinds() {
			if k.Hub != hub.GVK() {
				continue
			}
			found = true
			v, err := k.FromHub(want)
			if err != nil {
				t.Fatal(err)
			}
			got, err := k.ToHub(v)
			if err != nil {
				t.Fatal(err)
			}
			got.GetObjectKind().SetGroupVersionKind(hub.GVK())
			if !equality.Semantic.DeepEqual(got, want) {
				t.Errorf("%s: got %+v, want %+v", k.GVK(), got, want)
			}
		}
		if !found {
			t.Errorf("%s has no view", hub.GVK())
		}
	}
}
