package admission

import (
	"context"
	"errors"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/registry"
)

var (
	storageClasses = storagev1.SchemeGroupVersion.WithResource("storageclasses")
	ingresses      = networkingv1.SchemeGroupVersion.WithResource("ingresses")
	ingressClasses = networkingv1.SchemeGroupVersion.WithResource("ingressclasses")
)

// protections are the finalizers that keep storage until nobody uses it; the
// controller storageprotection takes them away.
var protections = map[schema.GroupVersionResource]string{
	claims: "kubernetes.io/pvc-protection",
	{Version: "v1", Resource: "persistentvolumes"}:                       "kubernetes.io/pv-protection",
	storagev1.SchemeGroupVersion.WithResource("volumeattributesclasses"): "kubernetes.io/vac-protection",
}

// creates tells whether the write makes a new object of a resource.
func creates(a *registry.Attributes, gvr schema.GroupVersionResource) bool {
	return a.Operation == registry.Create && a.Subresource == "" && a.Object != nil && a.Resource.GVR() == gvr
}

// storageProtection keeps storage that is deleted while it is used.
func storageProtection() registry.Admission {
	return registry.Admission{Name: "StorageObjectInUseProtection", Mutate: func(_ context.Context, a *registry.Attributes) error {
		name, ok := protections[a.Resource.GVR()]
		if !ok || !creates(a, a.Resource.GVR()) || slices.Contains(a.Object.GetFinalizers(), name) {
			return nil
		}
		a.Object.SetFinalizers(append(a.Object.GetFinalizers(), name))
		return nil
	}}
}

// defaultClass finds the class of a resource that is marked as the default: the
// newest of several, then the first by name.
func defaultClass(d Deps, gvr schema.GroupVersionResource, annotations ...string) string {
	var best kind.Object
	d.Each(gvr, "", func(o kind.Object) bool {
		if !slices.ContainsFunc(annotations, func(key string) bool { return o.GetAnnotations()[key] == "true" }) {
			return true
		}
		if best == nil {
			best = o
			return true
		}
		mine, theirs := o.GetCreationTimestamp(), best.GetCreationTimestamp()
		if theirs.Before(&mine) || mine.Equal(&theirs) && o.GetName() < best.GetName() {
			best = o
		}
		return true
	})
	if best == nil {
		return ""
	}
	return best.GetName()
}

// defaultStorageClass gives claims that name no class the default one.
func defaultStorageClass(d Deps) registry.Admission {
	return registry.Admission{Name: "DefaultStorageClass", Mutate: func(_ context.Context, a *registry.Attributes) error {
		if !creates(a, claims) {
			return nil
		}
		c := a.Object.(*corev1.PersistentVolumeClaim)
		if _, named := c.Annotations[corev1.BetaStorageClassAnnotation]; named || c.Spec.StorageClassName != nil {
			return nil
		}
		if name := defaultClass(d, storageClasses, "storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"); name != "" {
			c.Spec.StorageClassName = &name
		}
		return nil
	}}
}

// defaultIngressClass gives ingresses that name no class the default one.
func defaultIngressClass(d Deps) registry.Admission {
	return registry.Admission{Name: "DefaultIngressClass", Mutate: func(_ context.Context, a *registry.Attributes) error {
		if !creates(a, ingresses) {
			return nil
		}
		i := a.Object.(*networkingv1.Ingress)
		if _, named := i.Annotations["kubernetes.io/ingress.class"]; named || i.Spec.IngressClassName != nil {
			return nil
		}
		if name := defaultClass(d, ingressClasses, networkingv1.AnnotationIsDefaultIngressClass); name != "" {
			i.Spec.IngressClassName = &name
		}
		return nil
	}}
}

// claimResize lets bound claims grow whose class says that volumes can.
func claimResize(d Deps) registry.Admission {
	return registry.Admission{Name: "PersistentVolumeClaimResize", Validate: func(_ context.Context, a *registry.Attributes) error {
		if a.Operation != registry.Update || a.Subresource != "" || a.Object == nil || a.Resource.GVR() != claims {
			return nil
		}
		c, old := a.Object.(*corev1.PersistentVolumeClaim), a.Old.(*corev1.PersistentVolumeClaim)
		now, was := c.Spec.Resources.Requests[corev1.ResourceStorage], old.Spec.Resources.Requests[corev1.ResourceStorage]
		if now.Cmp(was) <= 0 {
			return nil
		}
		refuse := func(why string) error {
			return apierrors.NewForbidden(a.Resource.GroupResource(), a.Name, errors.New(why))
		}
		if old.Status.Phase != corev1.ClaimBound {
			return refuse("Only bound persistent volume claims can be expanded")
		}
		class, ok := old.Annotations[corev1.BetaStorageClassAnnotation]
		if !ok && old.Spec.StorageClassName != nil {
			class = *old.Spec.StorageClassName
		}
		if sc, ok := d.Lookup(storageClasses, "", class).(*storagev1.StorageClass); class != "" && ok && sc.AllowVolumeExpansion != nil && *sc.AllowVolumeExpansion {
			return nil
		}
		return refuse("only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize")
	}}
}
