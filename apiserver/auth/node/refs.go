package node

import (
	corev1 "k8s.io/api/core/v1"
)

// eachRef visits what a pod names and its node must therefore read. An object may
// come more than once.
func eachRef(p *corev1.Pod, visit func(ref)) {
	secret := func(name string) {
		if name != "" {
			visit(ref{"secrets", p.Namespace, name})
		}
	}
	config := func(name string) {
		if name != "" {
			visit(ref{"configmaps", p.Namespace, name})
		}
	}
	if p.Spec.ServiceAccountName != "" {
		visit(ref{"serviceaccounts", p.Namespace, p.Spec.ServiceAccountName})
	}
	for _, s := range p.Spec.ImagePullSecrets {
		secret(s.Name)
	}
	container := func(env []corev1.EnvVar, from []corev1.EnvFromSource) {
		for i := range from {
			if from[i].SecretRef != nil {
				secret(from[i].SecretRef.Name)
			}
			if from[i].ConfigMapRef != nil {
				config(from[i].ConfigMapRef.Name)
			}
		}
		for i := range env {
			v := env[i].ValueFrom
			if v == nil {
				continue
			}
			if v.SecretKeyRef != nil {
				secret(v.SecretKeyRef.Name)
			}
			if v.ConfigMapKeyRef != nil {
				config(v.ConfigMapKeyRef.Name)
			}
		}
	}
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			container(list[i].Env, list[i].EnvFrom)
		}
	}
	for i := range p.Spec.EphemeralContainers {
		container(p.Spec.EphemeralContainers[i].Env, p.Spec.EphemeralContainers[i].EnvFrom)
	}
	for i := range p.Spec.ResourceClaims {
		if name := p.Spec.ResourceClaims[i].ResourceClaimName; name != nil {
			visit(ref{"resourceclaims", p.Namespace, *name})
		}
	}
	for i := range p.Status.ResourceClaimStatuses {
		if name := p.Status.ResourceClaimStatuses[i].ResourceClaimName; name != nil {
			visit(ref{"resourceclaims", p.Namespace, *name})
		}
	}
	for i := range p.Spec.Volumes {
		eachVolumeRef(p, &p.Spec.Volumes[i], visit, secret, config)
	}
}

func eachVolumeRef(p *corev1.Pod, v *corev1.Volume, visit func(ref), secret, config func(string)) {
	local := func(r *corev1.LocalObjectReference) {
		if r != nil {
			secret(r.Name)
		}
	}
	switch {
	case v.Secret != nil:
		secret(v.Secret.SecretName)
	case v.ConfigMap != nil:
		config(v.ConfigMap.Name)
	case v.Projected != nil:
		for i := range v.Projected.Sources {
			s := &v.Projected.Sources[i]
			if s.Secret != nil {
				secret(s.Secret.Name)
			}
			if s.ConfigMap != nil {
				config(s.ConfigMap.Name)
			}
		}
	case v.PersistentVolumeClaim != nil:
		visit(ref{"persistentvolumeclaims", p.Namespace, v.PersistentVolumeClaim.ClaimName})
	case v.Ephemeral != nil:
		visit(ref{"persistentvolumeclaims", p.Namespace, p.Name + "-" + v.Name})
	case v.CSI != nil:
		local(v.CSI.NodePublishSecretRef)
	case v.AzureFile != nil:
		secret(v.AzureFile.SecretName)
	case v.CephFS != nil:
		local(v.CephFS.SecretRef)
	case v.RBD != nil:
		local(v.RBD.SecretRef)
	case v.FlexVolume != nil:
		local(v.FlexVolume.SecretRef)
	case v.ISCSI != nil:
		local(v.ISCSI.SecretRef)
	case v.ScaleIO != nil:
		local(v.ScaleIO.SecretRef)
	case v.StorageOS != nil:
		local(v.StorageOS.SecretRef)
	case v.Cinder != nil:
		local(v.Cinder.SecretRef)
	}
}

// eachVolumeSecret visits the secrets with which a node mounts a volume. Those
// without a namespace are in the claim's.
func eachVolumeSecret(v *corev1.PersistentVolume, visit func(namespace, name string)) {
	one := func(r *corev1.SecretReference) {
		if r == nil || r.Name == "" {
			return
		}
		ns := r.Namespace
		if ns == "" {
			ns = v.Spec.ClaimRef.Namespace
		}
		visit(ns, r.Name)
	}
	s := &v.Spec.PersistentVolumeSource
	switch {
	case s.CSI != nil:
		one(s.CSI.NodePublishSecretRef)
		one(s.CSI.NodeStageSecretRef)
		one(s.CSI.NodeExpandSecretRef)
	case s.CephFS != nil:
		one(s.CephFS.SecretRef)
	case s.RBD != nil:
		one(s.RBD.SecretRef)
	case s.FlexVolume != nil:
		one(s.FlexVolume.SecretRef)
	case s.ISCSI != nil:
		one(s.ISCSI.SecretRef)
	case s.ScaleIO != nil:
		one(s.ScaleIO.SecretRef)
	case s.Cinder != nil:
		one(s.Cinder.SecretRef)
	case s.AzureFile != nil:
		r := &corev1.SecretReference{Name: s.AzureFile.SecretName}
		if s.AzureFile.SecretNamespace != nil {
			r.Namespace = *s.AzureFile.SecretNamespace
		}
		one(r)
	}
}

// EachReference visits the objects that a pod names: secrets, config maps, claims
// and its service account.
func EachReference(p *corev1.Pod, visit func(resource, namespace, name string)) {
	eachRef(p, func(r ref) { visit(r.resource, r.namespace, r.name) })
}
