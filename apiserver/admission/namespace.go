package admission

import (
	"context"
	"fmt"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"knarr.dev/knarr/apiserver/registry"
)

var namespaces = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}

// immortal namespaces cannot be deleted.
var immortal = map[string]bool{metav1.NamespaceDefault: true, metav1.NamespaceSystem: true, metav1.NamespacePublic: true}

// namespaceLifecycle refuses new objects in namespaces that do not exist or are
// being deleted, and the deletion of the namespaces that a cluster needs.
func namespaceLifecycle(d Deps) registry.Admission {
	check := func(_ context.Context, a *registry.Attributes) error {
		if a.Resource.GVR() == namespaces {
			if a.Operation == registry.Delete && immortal[a.Name] {
				return apierrors.NewForbidden(a.Resource.GroupResource(), a.Name, fmt.Errorf("this namespace may not be deleted"))
			}
			return nil
		}
		if !a.Resource.Namespaced || a.Operation != registry.Create || a.Resource.Group == authorizationv1.GroupName { // questions may be about any
			return nil
		}
		obj := d.Lookup(namespaces, "", a.Namespace)
		if obj == nil {
			return apierrors.NewNotFound(schema.GroupResource{Resource: "namespaces"}, a.Namespace)
		}
		if ns := obj.(*corev1.Namespace); ns.Status.Phase == corev1.NamespaceTerminating {
			err := apierrors.NewForbidden(a.Resource.GroupResource(), a.Name,
				fmt.Errorf("unable to create new content in namespace %s because it is being terminated", a.Namespace))
			err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{
				Type: corev1.NamespaceTerminatingCause, Message: fmt.Sprintf("namespace %s is being terminated", a.Namespace), Field: "metadata.namespace"})
			return err
		}
		return nil
	}
	return registry.Admission{Name: "NamespaceLifecycle",
		Mutate: func(ctx context.Context, a *registry.Attributes) error {
			if a.Operation == registry.Create {
				return check(ctx, a)
			}
			return nil
		},
		Validate: func(ctx context.Context, a *registry.Attributes) error {
			if a.Operation == registry.Delete {
				return check(ctx, a)
			}
			return nil
		}}
}
