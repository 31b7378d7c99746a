package registry

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"knarr.dev/knarr/api"
	"knarr.dev/knarr/apiserver/watchcache"
)

// TestMergePlain holds that the short way of a merge patch gives what the long
// one gives, and that it is taken only where it may be.
func TestMergePlain(t *testing.T) {
	res := &Resource{}
	for _, c := range api.Kinds() {
		if c.GVR() == deploymentsGVR {
			res.Kind = c
		}
	}
	res.hub = res
	quarter := intstr.FromString("25%")
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "d", Namespace: "n", Labels: map[string]string{"a": "1"}, ResourceVersion: "4"}}
	d.SetGroupVersionKind(res.GVK())
	d.Spec.Replicas = new(int32(2))
	d.Spec.Strategy = appsv1.DeploymentStrategy{Type: "RollingUpdate", RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &quarter}}
	d.Spec.Template.Spec.Overhead = corev1.ResourceList{"cpu": resource.MustParse("1")}
	d.Spec.Template.Spec.Containers = []corev1.Container{{Name: "c", Image: "i"}}
	for body, short := range map[string]bool{
		`{}`: true,
		`{"metadata":{"labels":{"a":"2","b":"3"}}}`:                                         true,
		`{"metadata":{"annotations":{"x":"y"}}}`:                                            true,
		`{"metadata":{"annotations":{}}}`:                                                   true,
		`{"metadata":{"labels":{"a":null}}}`:                                                false,
		`{"metadata":{"finalizers":["a/b"]}}`:                                               false,
		`{"spec":{"replicas":5,"paused":true}}`:                                             true,
		`{"spec":{"replicas":0}}`:                                                           true,
		`{"spec":{"strategy":{"rollingUpdate":{"maxSurge":1}}}}`:                            false,
		`{"spec":{"selector":{"matchLabels":{"a":"b"}}}}`:                                   true,
		`{"spec":{"template":{"spec":{"overhead":{"cpu":"2","memory":"1Gi"}}}}}`:            true,
		`{"spec":{"template":{"spec":{"containers":[{"name":"x"}]}}}}`:                      false,
		`{"spec":{"template":{"spec":{"securityContext":{"seLinuxOptions":{}}}}}}`:          true,
		`{"metadata":{"resourceVersion":"3"}}`:                                              true,
		`{"metadata":{"creationTimestamp":"2020-01-01T00:00:00Z"}}`:                         false,
		`{"metadata":{"labels":{"a":"2"}},"metadata":{"labels":{"b":"2"}}}`:                 false,
		`{"kind":"Deployment","spec":{"replicas":1}}`:                                       false,
		`{"spec":{"Replicas":7}}`:                                                           false,
		`{"spec":{"replicas":"x"}}`:                                                         false,
		`{"spec":7}`:                                                                        false,
		`{"unknown":{}}`:                                                                    false,
		`null`:                                                                              false,
		`[]`:                                                                                false,
		`{"status":{"replicas":3}}`:                                                         true,
		`{"spec":{"template":{"metadata":{"labels":{"z":"\u003c"}}}}}`:                      true,
		`{"spec":{"template":{"spec":{"nodeSelector":{"a":"b"},"hostNetwork":false}}}}`:     true,
		`{"spec":{"template":{"spec":{"terminationGracePeriodSeconds":9007199254740993}}}}`: true,
	} {
		q := &Request{Resource: res, Name: "d", Namespace: "n"}
		got, ok := mergePlain(q, d, []byte(body))
		if ok != short {
			t.Errorf("%s: taken the short way: %v", body, ok)
		}
		if !ok {
			continue
		}
		want, err := patchedByJSON(q, watchcache.NewItem("n/d", d.DeepCopy(), 4), Patch{Type: types.MergePatchType, Data: []byte(body), Validation: metav1.FieldValidationStrict})
		if err != nil {
			t.Errorf("%s: %v", body, err)
		} else if !equality.Semantic.DeepEqual(got, want) {
			t.Errorf("%s:\n%v, want\n%v", body, got, want)
		}
	}
}
