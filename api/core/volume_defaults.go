package core

import (
	"reflect"

	corev1 "k8s.io/api/core/v1"
)

func defaultVolume(v *corev1.Volume) {
	src := &v.VolumeSource
	if reflect.ValueOf(*src).IsZero() {
		src.EmptyDir = &corev1.EmptyDirVolumeSource{}
	}
	if src.HostPath != nil {
		orNew(&src.HostPath.Type, corev1.HostPathUnset)
	}
	if src.Secret != nil {
		orNew(&src.Secret.DefaultMode, corev1.SecretVolumeSourceDefaultMode)
	}
	if src.ConfigMap != nil {
		orNew(&src.ConfigMap.DefaultMode, corev1.ConfigMapVolumeSourceDefaultMode)
	}
	if src.DownwardAPI != nil {
		orNew(&src.DownwardAPI.DefaultMode, corev1.DownwardAPIVolumeSourceDefaultMode)
		defaultDownward(src.DownwardAPI.Items)
	}
	if src.Projected != nil {
		defaultProjected(src.Projected)
	}
	if src.Image != nil {
		orElse(&src.Image.PullPolicy, pullPolicy(src.Image.Reference))
	}
	if src.Ephemeral != nil && src.Ephemeral.VolumeClaimTemplate != nil {
		DefaultClaimSpec(&src.Ephemeral.VolumeClaimTemplate.Spec)
	}
	if src.ISCSI != nil {
		orElse(&src.ISCSI.ISCSIInterface, "default")
	}
	if src.RBD != nil {
		orElse(&src.RBD.RBDPool, "rbd")
		orElse(&src.RBD.RadosUser, "admin")
		orElse(&src.RBD.Keyring, "/etc/ceph/keyring")
	}
	defaultAzureDisk(src.AzureDisk)
	if src.ScaleIO != nil {
		orElse(&src.ScaleIO.StorageMode, "ThinProvisioned")
		orElse(&src.ScaleIO.FSType, "xfs")
	}
}

func defaultProjected(p *corev1.ProjectedVolumeSource) {
	orNew(&p.DefaultMode, corev1.ProjectedVolumeSourceDefaultMode)
	for i := range p.Sources {
		if d := p.Sources[i].DownwardAPI; d != nil {
			defaultDownward(d.Items)
		}
		if t := p.Sources[i].ServiceAccountToken; t != nil {
			orNew(&t.ExpirationSeconds, 3600)
		}
	}
}

func defaultDownward(items []corev1.DownwardAPIVolumeFile) {
	for i := range items {
		if items[i].FieldRef != nil {
			orElse(&items[i].FieldRef.APIVersion, "v1")
		}
	}
}

func defaultAzureDisk(d *corev1.AzureDiskVolumeSource) {
	if d == nil {
		return
	}
	orNew(&d.CachingMode, corev1.AzureDataDiskCachingReadWrite)
	orNew(&d.Kind, corev1.AzureSharedBlobDisk)
	orNew(&d.FSType, "ext4")
	orNew(&d.ReadOnly, false)
}

// DefaultClaimSpec fills absent fields of a claim, also of a claim template.
func DefaultClaimSpec(s *corev1.PersistentVolumeClaimSpec) {
	orNew(&s.VolumeMode, corev1.PersistentVolumeFilesystem)
	roundResources(s.Resources.Limits)
	roundResources(s.Resources.Requests)
}

func defaultPersistentVolume(pv *corev1.PersistentVolume) {
	orElse(&pv.Status.Phase, corev1.VolumePending)
	orElse(&pv.Spec.PersistentVolumeReclaimPolicy, corev1.PersistentVolumeReclaimRetain)
	orNew(&pv.Spec.VolumeMode, corev1.PersistentVolumeFilesystem)
	roundResources(pv.Spec.Capacity)
	src := &pv.Spec.PersistentVolumeSource
	if src.HostPath != nil {
		orNew(&src.HostPath.Type, corev1.HostPathUnset)
	}
	if src.ISCSI != nil {
		orElse(&src.ISCSI.ISCSIInterface, "default")
	}
	if src.RBD != nil {
		orElse(&src.RBD.RBDPool, "rbd")
		orElse(&src.RBD.RadosUser, "admin")
		orElse(&src.RBD.Keyring, "/etc/ceph/keyring")
	}
	defaultAzureDisk(src.AzureDisk)
	if src.ScaleIO != nil {
		orElse(&src.ScaleIO.StorageMode, "ThinProvisioned")
		orElse(&src.ScaleIO.FSType, "xfs")
	}
}

// DefaultPersistentVolumeClaim fills absent fields of a claim.
func DefaultPersistentVolumeClaim(c *corev1.PersistentVolumeClaim) {
	orElse(&c.Status.Phase, corev1.ClaimPending)
	DefaultClaimSpec(&c.Spec)
}
