package admissionregistration

import (
	"encoding/json"
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"

	"knarr.dev/knarr/api/kind"
)

// ValidatingAdmissionPolicyV1beta1 is a view on v1, whose fields it has.
func ValidatingAdmissionPolicyV1beta1() *kind.Kind { return betaView(ValidatingAdmissionPolicy()) }

// ValidatingAdmissionPolicyBindingV1beta1 is a view on v1, whose fields it has.
func ValidatingAdmissionPolicyBindingV1beta1() *kind.Kind {
	return betaView(ValidatingAdmissionPolicyBinding())
}

// MutatingAdmissionPolicyV1beta1 is a view on v1, whose fields it has.
func MutatingAdmissionPolicyV1beta1() *kind.Kind { return betaView(MutatingAdmissionPolicy()) }

// MutatingAdmissionPolicyBindingV1beta1 is a view on v1, whose fields it has.
func MutatingAdmissionPolicyBindingV1beta1() *kind.Kind {
	return betaView(MutatingAdmissionPolicyBinding())
}

func betaView(hub *kind.Kind) *kind.Kind {
	beta := schema.GroupVersionKind{Group: group, Version: "v1beta1", Kind: hub.Kind}
	return &kind.Kind{
		Group: group, Version: beta.Version, Kind: hub.Kind, Resource: hub.Resource, Categories: categories, HasStatus: hub.HasStatus,
		Hub:     hub.GVK(),
		ToHub:   func(o kind.Object) (kind.Object, error) { return through(o, hub.GVK()) },
		FromHub: func(o kind.Object) (kind.Object, error) { return through(o, beta) },
	}
}

// through converts between versions of the same shape, by way of JSON.
func through(o kind.Object, to schema.GroupVersionKind) (kind.Object, error) {
	b, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("convert %T to %s: %w", o, to, err)
	}
	var out runtime.Object
	if out, err = scheme.Scheme.New(to); err == nil {
		err = json.Unmarshal(b, out)
	}
	if err != nil {
		return nil, fmt.Errorf("convert %T to %s: %w", o, to, err)
	}
	obj, ok := out.(kind.Object)
	if !ok {
		return nil, fmt.Errorf("convert %T to %s: %T is no API object", o, to, out)
	}
	obj.GetObjectKind().SetGroupVersionKind(to)
	return obj, nil
}
