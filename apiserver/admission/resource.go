package admission

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/apiserver/registry"
)

// deviceAdmins lets claims ask for access to devices that others use only in
// namespaces that an administrator has labelled for it.
func deviceAdmins(d Deps) registry.Admission {
	return registry.Admission{Name: "DRAAdminAccess", Validate: func(_ context.Context, a *registry.Attributes) error {
		if a.Resource.Group != resourcev1.GroupName || a.Operation != registry.Create || a.Subresource != "" {
			return nil
		}
		var requests []resourcev1.DeviceRequest
		at := field.NewPath("spec")
		switch o := a.Object.(type) {
		case *resourcev1.ResourceClaim:
			requests = o.Spec.Devices.Requests
		case *resourcev1.ResourceClaimTemplate:
			requests, at = o.Spec.Spec.Devices.Requests, at.Child("spec")
		}
		var errs field.ErrorList
		for i, r := range requests {
			if r.Exactly != nil && r.Exactly.AdminAccess != nil && *r.Exactly.AdminAccess {
				errs = append(errs, field.Forbidden(at.Child("devices", "requests").Index(i).Child("adminAccess"),
					"admin access to devices requires the `resource.kubernetes.io/admin-access: true` label on the containing namespace"))
			}
		}
		if len(errs) == 0 {
			return nil
		}
		ns, ok := d.Lookup(schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}, "", a.Namespace).(*corev1.Namespace)
		if ok && ns.Labels[resourcev1.DRAAdminNamespaceLabelKey] == "true" {
			return nil
		}
		return apierrors.NewInvalid(a.Resource.GVK().GroupKind(), a.Name, errs)
	}}
}
