package core

import (
	"fmt"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/diff"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
)

var volumeModes = []corev1.PersistentVolumeMode{corev1.PersistentVolumeBlock, corev1.PersistentVolumeFilesystem}

func validateClaim(c *corev1.PersistentVolumeClaim) field.ErrorList {
	return ValidateClaimSpec(&c.Spec, field.NewPath("spec"))
}

// ValidateClaimSpec checks a claim or a claim template.
func ValidateClaimSpec(s *corev1.PersistentVolumeClaimSpec, at *field.Path) field.ErrorList {
	errs := check.AccessModes(at.Child("accessModes"), s.AccessModes)
	errs = append(errs, check.Selector(at.Child("selector"), s.Selector)...)
	size, ok := s.Resources.Requests[corev1.ResourceStorage]
	request := at.Child("resources").Key(string(corev1.ResourceStorage))
	if !ok {
		errs = append(errs, field.Required(request, ""))
	} else if size.Sign() <= 0 {
		errs = append(errs, field.Invalid(request, size.String(), "must be greater than zero"))
	}
	if d := s.DataSource; d != nil {
		errs = append(errs, checkDataSource(at.Child("dataSource"), d.APIGroup, d.Kind, d.Name)...)
	}
	if d := s.DataSourceRef; d != nil {
		errs = append(errs, checkDataSource(at.Child("dataSourceRef"), d.APIGroup, d.Kind, d.Name)...)
	}
	if s.StorageClassName != nil && *s.StorageClassName != "" {
		errs = append(errs, check.DNSSubdomain(at.Child("storageClassName"), *s.StorageClassName)...)
	}
	if s.VolumeMode != nil {
		errs = append(errs, check.OneOf(at.Child("volumeMode"), *s.VolumeMode, volumeModes...)...)
	}
	return errs
}

// checkDataSource checks what a claim's volume is filled from.
func checkDataSource(at *field.Path, group *string, kind, name string) errorList {
	errs := append(check.Required(at.Child("name"), name), check.Required(at.Child("kind"), kind)...)
	if (group == nil || *group == "") && kind != "PersistentVolumeClaim" {
		errs = append(errs, field.Invalid(at, kind, "must be 'PersistentVolumeClaim' when referencing the default apiGroup"))
	}
	return errs
}

func validateClaimUpdate(c, old *corev1.PersistentVolumeClaim) field.ErrorList {
	errs := validateClaim(c)
	at := field.NewPath("spec")
	m := c.Spec.DeepCopy()
	// Binding sets the volume's name; a claim of no class may be given one.
	if old.Spec.VolumeName == "" {
		m.VolumeName = old.Spec.VolumeName
	}
	if old.Spec.StorageClassName == nil && old.Status.Phase != corev1.ClaimBound {
		m.StorageClassName = nil
	}
	if old.Status.Phase == corev1.ClaimBound {
		m.VolumeAttributesClassName = old.Spec.VolumeAttributesClassName
	}
	was, now := old.Spec.Resources.Requests[corev1.ResourceStorage], m.Resources.Requests[corev1.ResourceStorage]
	if old.Status.Phase == corev1.ClaimBound {
		granted, known := old.Status.Capacity[corev1.ResourceStorage]
		if now.Cmp(was) < 0 && (!known || now.Cmp(granted) <= 0) {
			errs = append(errs, field.Forbidden(at.Child("resources", "requests", "storage"), "field can not be less than status.capacity"))
		}
		if m.Resources.Requests != nil && old.Spec.Resources.Requests != nil {
			m.Resources.Requests[corev1.ResourceStorage] = was
		}
	}
	if !check.Same(*m, old.Spec) {
		errs = append(errs, field.Forbidden(at, fmt.Sprintf("spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n%v", diff.Diff(old.Spec, *m))))
	}
	return append(errs, check.Immutable(field.NewPath("volumeMode"), c.Spec.VolumeMode, old.Spec.VolumeMode)...)
}

// resizeStates are how far the resize of a volume has come.
var resizeStates = []corev1.ClaimResourceStatus{
	corev1.PersistentVolumeClaimControllerResizeInProgress, corev1.PersistentVolumeClaimControllerResizeInfeasible,
	corev1.PersistentVolumeClaimNodeResizeInProgress, corev1.PersistentVolumeClaimNodeResizeInfeasible, corev1.PersistentVolumeClaimNodeResizePending,
}

func validateClaimStatus(c, _ *corev1.PersistentVolumeClaim) field.ErrorList {
	at, s := field.NewPath("status"), &c.Status
	errs := checkSizes(at.Child("capacity"), s.Capacity)
	states := at.Child("allocatedResourceStatuses")
	only := []corev1.ResourceName{corev1.ResourceStorage}
	for name, state := range s.AllocatedResourceStatuses {
		if name != corev1.ResourceStorage && !strings.Contains(string(name), "/") {
			errs = append(errs, field.NotSupported(states, name, only))
		} else if !slices.Contains(resizeStates, state) {
			errs = append(errs, field.NotSupported(states, name, resizeStates))
		}
	}
	for name := range s.AllocatedResources {
		if name != corev1.ResourceStorage && !strings.Contains(string(name), "/") {
			errs = append(errs, field.NotSupported(at.Child("allocatedResources"), name, only))
		}
	}
	return append(errs, checkSizes(at.Child("allocatedResources"), s.AllocatedResources)...)
}

func checkSizes(at *field.Path, l corev1.ResourceList) (errs errorList) {
	for name, q := range l {
		if q.Sign() < 0 {
			errs = append(errs, field.Invalid(at.Key(string(name)), q.Value(), "must be a valid resource quantity"))
		}
	}
	return errs
}

func validateVolumeObject(pv *corev1.PersistentVolume) field.ErrorList {
	at := field.NewPath("spec")
	s := &pv.Spec
	errs := check.AccessModes(at.Child("accessModes"), s.AccessModes)
	if size, ok := s.Capacity[corev1.ResourceStorage]; !ok || len(s.Capacity) != 1 {
		if len(s.Capacity) == 0 {
			errs = append(errs, field.Required(at.Child("capacity"), ""))
		}
		errs = append(errs, field.NotSupported(at.Child("capacity"), s.Capacity, []corev1.ResourceName{corev1.ResourceStorage}))
	} else if size.Sign() <= 0 {
		errs = append(errs, field.Invalid(at.Child("capacity").Key(string(corev1.ResourceStorage)), size.String(), "must be greater than zero"))
	}
	errs = append(errs, check.OneOfOrEmpty(at.Child("persistentVolumeReclaimPolicy"), s.PersistentVolumeReclaimPolicy,
		corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRecycle, corev1.PersistentVolumeReclaimRetain)...)
	set := sources(s.PersistentVolumeSource)
	if i := slices.Index(set, "hostPath"); i > 0 {
		// Kubernetes looks at hostPath first: the others are the ones too many.
		set = slices.Insert(slices.Delete(set, i, i+1), 0, "hostPath")
	}
	if len(set) == 0 {
		errs = append(errs, field.Required(at, "must specify a volume type"))
	}
	for i, name := range set {
		if i > 0 {
			errs = append(errs, field.Forbidden(at.Child(sourcePath(name)), "may not specify more than 1 volume type"))
		}
	}
	if s.HostPath != nil {
		errs = append(errs, checkHostPath(at.Child("hostPath"), s.HostPath)...)
		if path.Clean(s.HostPath.Path) == "/" && s.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimRecycle {
			errs = append(errs, field.Forbidden(at.Child("persistentVolumeReclaimPolicy"), "may not be 'recycle' for a hostPath mount of '/'"))
		}
	}
	first := func(name string) bool { return len(set) > 0 && set[0] == name }
	if first("local") {
		errs = append(errs, check.Required(at.Child("local", "path"), s.Local.Path)...)
		if s.NodeAffinity == nil || s.NodeAffinity.Required == nil {
			errs = append(errs, field.Required(at.Child("nodeAffinity"), "Local volume requires node affinity"))
		}
	}
	if first("csi") {
		errs = append(errs, check.Required(at.Child("csi", "driver"), s.CSI.Driver)...)
		errs = append(errs, check.Required(at.Child("csi", "volumeHandle"), s.CSI.VolumeHandle)...)
	}
	if s.NodeAffinity != nil && s.NodeAffinity.Required != nil {
		errs = append(errs, ValidateNodeSelector(s.NodeAffinity.Required, at.Child("nodeAffinity", "required"))...)
	}
	if s.StorageClassName != "" {
		errs = append(errs, check.DNSSubdomain(at.Child("storageClassName"), s.StorageClassName)...)
	}
	if s.VolumeMode != nil {
		errs = append(errs, check.OneOf(at.Child("volumeMode"), *s.VolumeMode, volumeModes...)...)
	}
	return errs
}

func validateVolumeUpdate(pv, old *corev1.PersistentVolume) field.ErrorList {
	errs := validateVolumeObject(pv)
	at := field.NewPath("spec")
	if !check.Same(pv.Spec.PersistentVolumeSource, old.Spec.PersistentVolumeSource) {
		errs = append(errs, field.Forbidden(at.Child("persistentvolumesource"),
			fmt.Sprintf("spec.persistentvolumesource is immutable after creation\n%v", diff.Diff(old.Spec.PersistentVolumeSource, pv.Spec.PersistentVolumeSource))))
	}
	errs = append(errs, check.Immutable(field.NewPath("volumeMode"), pv.Spec.VolumeMode, old.Spec.VolumeMode)...)
	if old.Spec.NodeAffinity != nil && !check.Same(pv.Spec.NodeAffinity, old.Spec.NodeAffinity) {
		errs = append(errs, field.Invalid(field.NewPath("nodeAffinity"), pv.Spec.NodeAffinity, "field is immutable, except for updating from beta label to GA"))
	}
	return errs
}

func validateReplicationController(r *corev1.ReplicationController) field.ErrorList {
	at := field.NewPath("spec")
	errs := check.NonNegative(at.Child("minReadySeconds"), r.Spec.MinReadySeconds)
	if len(r.Spec.Selector) == 0 {
		errs = append(errs, field.Required(at.Child("selector"), ""))
	}
	if r.Spec.Replicas == nil {
		errs = append(errs, field.Required(at.Child("replicas"), ""))
	} else {
		errs = append(errs, check.NonNegative(at.Child("replicas"), *r.Spec.Replicas)...)
	}
	t := r.Spec.Template
	if t == nil {
		return append(errs, field.Required(at.Child("template"), ""))
	}
	if s := labels.SelectorFromSet(r.Spec.Selector); !s.Empty() && !s.Matches(labels.Set(t.Labels)) {
		errs = append(errs, field.Invalid(at.Child("template", "metadata", "labels"), t.Labels, "`selector` does not match template `labels`"))
	}
	errs = append(errs, ValidatePodTemplate(t, at.Child("template"))...)
	return append(errs, OnlyRestartAlways(t, at.Child("template"), "ReplicationController")...)
}

func validateReplicationControllerStatus(r, _ *corev1.ReplicationController) field.ErrorList {
	at, s := field.NewPath("status"), &r.Status
	errs := check.Counts(at, s.Replicas, check.Count{Name: "fullyLabeledReplicas", N: s.FullyLabeledReplicas},
		check.Count{Name: "readyReplicas", N: s.ReadyReplicas}, check.Count{Name: "availableReplicas", N: s.AvailableReplicas})
	errs = append(errs, check.NonNegative(at.Child("observedGeneration"), s.ObservedGeneration)...)
	if s.AvailableReplicas > s.ReadyReplicas {
		errs = append(errs, field.Invalid(at.Child("availableReplicas"), s.AvailableReplicas, "cannot be greater than readyReplicas"))
	}
	return errs
}

// OnlyRestartAlways refuses templates of pods that end: controllers which keep a
// number of pods running cannot use them. who is the kind that errors name.
func OnlyRestartAlways(t *corev1.PodTemplateSpec, at *field.Path, who string) field.ErrorList {
	var errs errorList
	if t.Spec.RestartPolicy != corev1.RestartPolicyAlways {
		errs = append(errs, field.NotSupported(at.Child("spec", "restartPolicy"), t.Spec.RestartPolicy, []corev1.RestartPolicy{corev1.RestartPolicyAlways}))
	}
	if t.Spec.ActiveDeadlineSeconds != nil {
		errs = append(errs, field.Forbidden(at.Child("spec", "activeDeadlineSeconds"), "activeDeadlineSeconds in "+who+" is not Supported"))
	}
	return errs
}
