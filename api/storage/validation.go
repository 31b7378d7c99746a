package storage

import (
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
)

func validateStorageClass(c *storagev1.StorageClass) field.ErrorList {
	var errs field.ErrorList
	if c.Provisioner == "" {
		errs = append(errs, field.Required(field.NewPath("provisioner"), ""))
	} else {
		errs = append(errs, check.QualifiedName(field.NewPath("provisioner"), c.Provisioner)...)
	}
	for k := range c.Parameters {
		if k == "" {
			errs = append(errs, field.Invalid(field.NewPath("parameters"), k, "field can not be empty."))
		}
	}
	if c.ReclaimPolicy != nil {
		errs = append(errs, check.OneOf(field.NewPath("reclaimPolicy"), *c.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRetain)...)
	}
	if c.VolumeBindingMode == nil {
		return append(errs, field.Required(field.NewPath("volumeBindingMode"), ""))
	}
	return append(errs, check.OneOf(field.NewPath("volumeBindingMode"), *c.VolumeBindingMode, storagev1.VolumeBindingImmediate, storagev1.VolumeBindingWaitForFirstConsumer)...)
}

func validateStorageClassUpdate(c, old *storagev1.StorageClass) field.ErrorList {
	errs := validateStorageClass(c)
	errs = append(errs, check.Immutable(field.NewPath("parameters"), c.Parameters, old.Parameters)...)
	errs = append(errs, check.Immutable(field.NewPath("provisioner"), c.Provisioner, old.Provisioner)...)
	errs = append(errs, check.Immutable(field.NewPath("reclaimPolicy"), c.ReclaimPolicy, old.ReclaimPolicy)...)
	return append(errs, check.Immutable(field.NewPath("volumeBindingMode"), c.VolumeBindingMode, old.VolumeBindingMode)...)
}

func validateAttributesClass(c *storagev1.VolumeAttributesClass) field.ErrorList {
	errs := check.Required(field.NewPath("driverName"), c.DriverName)
	if len(c.Parameters) == 0 {
		errs = append(errs, field.Required(field.NewPath("parameters"), "must contain at least one key/value pair"))
	}
	return errs
}

func validateAttributesClassUpdate(c, old *storagev1.VolumeAttributesClass) field.ErrorList {
	var errs field.ErrorList
	if c.DriverName != old.DriverName {
		errs = append(errs, field.Forbidden(field.NewPath("driverName"), "updates to driverName are forbidden."))
	}
	if !check.Same(c.Parameters, old.Parameters) {
		errs = append(errs, field.Forbidden(field.NewPath("parameters"), "updates to parameters are forbidden."))
	}
	return errs
}

func validateAttachment(a *storagev1.VolumeAttachment) field.ErrorList {
	at, s := field.NewPath("spec"), &a.Spec
	errs := check.Required(at.Child("attacher"), s.Attacher)
	errs = append(errs, check.DNSSubdomain(at.Child("nodeName"), s.NodeName)...)
	named := s.Source.PersistentVolumeName != nil
	switch inline := s.Source.InlineVolumeSpec != nil; {
	case !named && !inline:
		errs = append(errs, field.Required(at.Child("source"), "must specify exactly one of inlineVolumeSpec and persistentVolumeName"))
	case named && inline:
		errs = append(errs, field.Forbidden(at.Child("source"), "must specify exactly one of inlineVolumeSpec and persistentVolumeName"))
	case named && *s.Source.PersistentVolumeName == "":
		errs = append(errs, field.Required(at.Child("source", "persistentVolumeName"), "must specify non empty persistentVolumeName"))
	}
	return errs
}

func validateAttachmentUpdate(a, old *storagev1.VolumeAttachment) field.ErrorList {
	errs := validateAttachment(a)
	if !check.Same(a.Spec, old.Spec) {
		errs = append(errs, field.Invalid(field.NewPath("spec"), a.Spec, "field is immutable"))
	}
	return errs
}

func validateAttachmentStatus(a, _ *storagev1.VolumeAttachment) field.ErrorList {
	var errs field.ErrorList
	for _, e := range []struct {
		name string
		err  *storagev1.VolumeError
	}{{"attachError", a.Status.AttachError}, {"detachError", a.Status.DetachError}} {
		if e.err != nil && e.err.ErrorCode != nil && *e.err.ErrorCode < 0 {
			errs = append(errs, field.Invalid(field.NewPath("status", e.name, "errorCode"), *e.err.ErrorCode, "must be between 0 and 2147483647, inclusive"))
		}
	}
	return errs
}

func validateCSINode(n *storagev1.CSINode) field.ErrorList {
	var errs field.ErrorList
	names := map[string]bool{}
	for i, d := range n.Spec.Drivers {
		at := field.NewPath("spec", "drivers").Index(i)
		errs = append(errs, driverName(at.Child("name"), d.Name)...)
		if names[d.Name] {
			errs = append(errs, field.Duplicate(at.Child("name"), d.Name))
		}
		names[d.Name] = true
		errs = append(errs, check.Required(at.Child("nodeID"), d.NodeID)...)
		if d.Allocatable != nil {
			errs = append(errs, check.NonNegativePointer(at.Child("allocatable", "count"), d.Allocatable.Count)...)
		}
	}
	return errs
}

// validateCSINodeUpdate lets drivers come and go, and none but its room change.
func validateCSINodeUpdate(n, old *storagev1.CSINode) field.ErrorList {
	errs := validateCSINode(n)
	for _, d := range n.Spec.Drivers {
		for _, was := range old.Spec.Drivers {
			was.Allocatable = d.Allocatable
			if d.Name == was.Name && !check.Same(d, was) {
				shown := struct { // as Kubernetes writes it
					Name, NodeID string
					TopologyKeys []string
					Allocatable  *storagev1.VolumeNodeResources
				}{d.Name, d.NodeID, d.TopologyKeys, d.Allocatable}
				errs = append(errs, field.Invalid(field.NewPath("spec", "drivers"), shown, "field is immutable"))
			}
		}
	}
	return errs
}

func driverName(at *field.Path, name string) field.ErrorList {
	const most = 63
	if name == "" {
		return field.ErrorList{field.Required(at, "")}
	}
	var errs field.ErrorList
	if len(name) > most {
		errs = append(errs, field.TooLong(at, "", most))
	}
	return append(errs, check.DNSSubdomain(at, name)...)
}

func validateCapacity(c *storagev1.CSIStorageCapacity) field.ErrorList {
	errs := check.DNSSubdomain(field.NewPath("storageClassName"), c.StorageClassName)
	errs = append(errs, check.Selector(field.NewPath("nodeTopology"), c.NodeTopology)...)
	if c.Capacity != nil {
		errs = append(errs, check.Quantity(field.NewPath("capacity"), *c.Capacity)...)
	}
	return errs
}

func validateCapacityUpdate(c, old *storagev1.CSIStorageCapacity) field.ErrorList {
	errs := validateCapacity(c)
	errs = append(errs, check.Immutable(field.NewPath("storageClassName"), c.StorageClassName, old.StorageClassName)...)
	return append(errs, check.Immutable(field.NewPath("nodeTopology"), c.NodeTopology, old.NodeTopology)...)
}

func validateDriver(d *storagev1.CSIDriver) field.ErrorList {
	errs := driverName(field.NewPath("name"), d.Name)
	at := field.NewPath("spec")
	for _, m := range d.Spec.VolumeLifecycleModes {
		errs = append(errs, check.Exactly(at.Child("volumeLifecycleModes"), m, storagev1.VolumeLifecyclePersistent, storagev1.VolumeLifecycleEphemeral)...)
	}
	audiences := map[string]bool{}
	for i, r := range d.Spec.TokenRequests {
		at := at.Child("tokenRequests").Index(i)
		if audiences[r.Audience] {
			errs = append(errs, field.Duplicate(at.Child("audience"), r.Audience))
		}
		audiences[r.Audience] = true
		if s := r.ExpirationSeconds; s != nil && *s < 600 {
			errs = append(errs, field.Invalid(at.Child("expirationSeconds"), *s, "may not specify a duration less than 10 minutes"))
		} else if s != nil && *s > 1<<32 {
			errs = append(errs, field.Invalid(at.Child("expirationSeconds"), *s, "may not specify a duration larger than 2^32 seconds"))
		}
	}
	if p := d.Spec.FSGroupPolicy; p != nil {
		errs = append(errs, check.OneOf(at.Child("fsGroupPolicy"), *p, storagev1.FileFSGroupPolicy, storagev1.NoneFSGroupPolicy, storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy)...)
	}
	return errs
}

func validateDriverUpdate(d, old *storagev1.CSIDriver) field.ErrorList {
	at := field.NewPath("spec")
	errs := check.Immutable(at.Child("attachedRequired"), d.Spec.AttachRequired, old.Spec.AttachRequired)
	return append(errs, check.Immutable(at.Child("volumeLifecycleModes"), d.Spec.VolumeLifecycleModes, old.Spec.VolumeLifecycleModes)...)
}
