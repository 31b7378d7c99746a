package policies

import (
	"context"
	"errors"
	"fmt"

	admv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"knarr.dev/knarr/apiserver/registry"
)

var errNoParams = errors.New("no params found for policy binding with `Deny` parameterNotFoundAction")

// params are the objects with which a bound policy is evaluated, once with each.
// A policy without parameters is evaluated with nil.
func (c *Config) params(ctx context.Context, k *admv1.ParamKind, ref *admv1.ParamRef, a *registry.Attributes) ([]runtime.Object, error) {
	if k == nil || ref == nil {
		return []runtime.Object{nil}, nil
	}
	res := c.Kind(schema.FromAPIVersionAndKind(k.APIVersion, k.Kind))
	if res == nil {
		return nil, fmt.Errorf("paramKind kind `%v` not known", k)
	}
	namespace := ""
	switch {
	case !res.Namespaced && ref.Namespace != "":
		return nil, errors.New("paramRef.namespace must not be provided for a cluster-scoped `paramKind`")
	case res.Namespaced:
		if namespace = a.Namespace; ref.Namespace != "" {
			namespace = ref.Namespace
		}
		if namespace == "" {
			return nil, errors.New("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources")
		}
	}
	sel := labels.Everything()
	if ref.Name == "" {
		var err error
		if sel, err = metav1.LabelSelectorAsSelector(ref.Selector); err != nil {
			return nil, err
		}
	}
	objs, err := res.Objects(ctx, namespace, ref.Name)
	if err != nil {
		return nil, err
	}
	var out []runtime.Object
	for _, o := range objs {
		if sel.Matches(labels.Set(o.GetLabels())) {
			out = append(out, o)
		}
	}
	if len(out) == 0 && ref.ParameterNotFoundAction != nil && *ref.ParameterNotFoundAction == admv1.DenyAction {
		return nil, errNoParams
	}
	return out, nil
}

// namespace is the request's namespace; nil for cluster-scoped objects. An error
// is the answer to the request.
func (c *Config) namespace(a *registry.Attributes) (*corev1.Namespace, error) {
	if a.Namespace == "" || a.Resource.GVR() == namespacesGVR {
		return nil, nil
	}
	ns, ok := c.Lookup(namespacesGVR, "", a.Namespace).(*corev1.Namespace)
	if !ok {
		return nil, apierrors.NewNotFound(namespacesGVR.GroupResource(), a.Namespace)
	}
	return ns, nil
}

// forbidden is the answer to a request that a policy refuses, whatever the reason
// says.
func forbidden(a *registry.Attributes, message string) *apierrors.StatusError {
	name := a.Name
	if name == "" {
		name = "Unknown"
		if a.Object != nil && a.Object.GetGenerateName() != "" {
			name = a.Object.GetGenerateName()
		}
	}
	return apierrors.NewForbidden(a.Requested.GroupResource(), name, errors.New(message))
}
