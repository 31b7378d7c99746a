package core

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"

	"knarr.dev/knarr/api/columns"
	"knarr.dev/knarr/api/kind"
)

// Annotation that named the class before spec.storageClassName existed.
const betaStorageClass = corev1.BetaStorageClassAnnotation

// PersistentVolumeClaim declares v1 PersistentVolumeClaim.
func PersistentVolumeClaim() *kind.Kind {
	return &kind.Kind{
		Version: "v1", Kind: "PersistentVolumeClaim", Resource: "persistentvolumeclaims", ShortNames: []string{"pvc"}, Namespaced: true, HasStatus: true, NoGeneration: true,
		Default: kind.Each(DefaultPersistentVolumeClaim),
		PrepareCreate: kind.Each(func(c *corev1.PersistentVolumeClaim) {
			c.Status = corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending}
			copyDataSource(&c.Spec)
		}),
		PrepareUpdate: kind.Pair(func(c, old *corev1.PersistentVolumeClaim) {
			c.Status = *old.Status.DeepCopy()
			copyDataSource(&c.Spec)
		}),
		Validate:       kind.Check(validateClaim),
		ValidateUpdate: kind.CheckChange(validateClaimUpdate),
		ValidateStatus: kind.CheckChange(validateClaimStatus),
		Columns: append(columns.Named(
			columns.Text("Status", "Whether a volume has been found."),
			columns.Text("Volume", "The volume."),
			columns.Text("Capacity", "The volume's size."),
			columns.Text("Access Modes", "How it may be mounted."),
			columns.Text("StorageClass", "The class of storage."),
			columns.Text("VolumeAttributesClass", "The class of its changeable attributes."),
			columns.Age(),
		), columns.Wide(columns.Text("VolumeMode", "Filesystem or block device."))...),
		Row: kind.RowOf(func(c *corev1.PersistentVolumeClaim, now time.Time) []any {
			phase, capacity, modes := string(c.Status.Phase), "", ""
			if c.DeletionTimestamp != nil {
				phase = "Terminating"
			}
			if c.Spec.VolumeName != "" {
				size := c.Status.Capacity[corev1.ResourceStorage]
				capacity, modes = size.String(), columns.AccessModes(c.Status.AccessModes)
			}
			class, ok := c.Annotations[betaStorageClass]
			if !ok {
				class = columns.Deref(c.Spec.StorageClassName, "")
			}
			return []any{c.Name, phase, c.Spec.VolumeName, capacity, modes, class, columns.Deref(c.Spec.VolumeAttributesClassName, columns.Unset),
				columns.Created(c, now), string(columns.Deref(c.Spec.VolumeMode, columns.Unset))}
		}),
	}
}

// copyDataSource keeps dataSource and its successor dataSourceRef the same where
// both can say it: within the claim's namespace.
func copyDataSource(s *corev1.PersistentVolumeClaimSpec) {
	switch {
	case s.DataSource != nil && s.DataSourceRef == nil:
		s.DataSourceRef = &corev1.TypedObjectReference{Kind: s.DataSource.Kind, Name: s.DataSource.Name}
		if s.DataSource.APIGroup != nil {
			g := *s.DataSource.APIGroup
			s.DataSourceRef.APIGroup = &g
		}
	case s.DataSourceRef != nil && s.DataSource == nil && (s.DataSourceRef.Namespace == nil || *s.DataSourceRef.Namespace == ""):
		s.DataSource = &corev1.TypedLocalObjectReference{Kind: s.DataSourceRef.Kind, Name: s.DataSourceRef.Name}
		if s.DataSourceRef.APIGroup != nil {
			g := *s.DataSourceRef.APIGroup
			s.DataSource.APIGroup = &g
		}
	}
}

// PersistentVolume declares v1 PersistentVolume.
func PersistentVolume() *kind.Kind {
	return &kind.Kind{
		Version: "v1", Kind: "PersistentVolume", Resource: "persistentvolumes", ShortNames: []string{"pv"}, HasStatus: true, NoGeneration: true,
		Default: kind.Each(defaultPersistentVolume),
		PrepareCreate: kind.Each(func(pv *corev1.PersistentVolume) {
			created := pv.CreationTimestamp
			pv.Status = corev1.PersistentVolumeStatus{Phase: corev1.VolumePending, LastPhaseTransitionTime: &created}
		}),
		Validate:       kind.Check(validateVolumeObject),
		ValidateUpdate: kind.CheckChange(validateVolumeUpdate),
		Fields:         kind.FieldsOf(func(pv *corev1.PersistentVolume) fields.Set { return fields.Set{"name": pv.Name} }),
		Columns: append(columns.Named(
			columns.Text("Capacity", "The volume's size."),
			columns.Text("Access Modes", "How it may be mounted."),
			columns.Text("Reclaim Policy", "What becomes of it when its claim goes."),
			columns.Text("Status", "Whether it is claimed."),
			columns.Text("Claim", "Its claim."),
			columns.Text("StorageClass", "The class of storage."),
			columns.Text("VolumeAttributesClass", "The class of its changeable attributes."),
			columns.Text("Reason", "Why it failed."),
			columns.Age(),
		), columns.Wide(columns.Text("VolumeMode", "Filesystem or block device."))...),
		Row: kind.RowOf(func(pv *corev1.PersistentVolume, now time.Time) []any {
			phase, claim := string(pv.Status.Phase), ""
			if pv.DeletionTimestamp != nil {
				phase = "Terminating"
			}
			if r := pv.Spec.ClaimRef; r != nil {
				claim = r.Namespace + "/" + r.Name
			}
			class, ok := pv.Annotations[betaStorageClass]
			if !ok {
				class = pv.Spec.StorageClassName
			}
			size := pv.Spec.Capacity[corev1.ResourceStorage]
			return []any{pv.Name, size.String(), columns.AccessModes(pv.Spec.AccessModes), string(pv.Spec.PersistentVolumeReclaimPolicy), phase, claim, class,
				columns.Deref(pv.Spec.VolumeAttributesClassName, columns.Unset), pv.Status.Reason, columns.Created(pv, now), string(columns.Deref(pv.Spec.VolumeMode, columns.Unset))}
		}),
	}
}
