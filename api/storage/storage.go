// Package storage declares the kinds of the group storage.k8s.io.
package storage

import (
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"knarr.dev/knarr/api/columns"
	"knarr.dev/knarr/api/kind"
)

const group = "storage.k8s.io"

// StorageClass declares storage.k8s.io/v1 StorageClass.
func StorageClass() *kind.Kind {
	return &kind.Kind{
		Group: group, Version: "v1", Kind: "StorageClass", Resource: "storageclasses", ShortNames: []string{"sc"}, NoGeneration: true,
		Default: kind.Each(func(c *storagev1.StorageClass) {
			set(&c.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete)
			set(&c.VolumeBindingMode, storagev1.VolumeBindingImmediate)
		}),
		Validate:       kind.Check(validateStorageClass),
		ValidateUpdate: kind.CheckChange(validateStorageClassUpdate),
		Columns: columns.Named(
			columns.Text("Provisioner", "What makes its volumes."),
			columns.Text("ReclaimPolicy", "What becomes of volumes when their claims go."),
			columns.Text("VolumeBindingMode", "When volumes are made."),
			columns.Text("AllowVolumeExpansion", "Whether volumes can grow."),
			columns.Age(),
		),
		Row: kind.RowOf(func(c *storagev1.StorageClass, now time.Time) []any {
			name := c.Name
			if c.Annotations["storageclass.kubernetes.io/is-default-class"] == "true" ||
				c.Annotations["storageclass.beta.kubernetes.io/is-default-class"] == "true" {
				name += " (default)"
			}
			return []any{name, c.Provisioner, string(columns.Deref(c.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete)),
				string(columns.Deref(c.VolumeBindingMode, columns.Unset)), columns.Deref(c.AllowVolumeExpansion, false), columns.Created(c, now)}
		}),
	}
}

// VolumeAttributesClass declares storage.k8s.io/v1 VolumeAttributesClass.
func VolumeAttributesClass() *kind.Kind {
	return &kind.Kind{
		Group: group, Version: "v1", Kind: "VolumeAttributesClass", Resource: "volumeattributesclasses", ShortNames: []string{"vac"}, NoGeneration: true,
		Validate:       kind.Check(validateAttributesClass),
		ValidateUpdate: kind.CheckChange(validateAttributesClassUpdate),
		Columns:        columns.Named(columns.Text("DriverName", "The driver that it is for."), columns.Age()),
		Row: kind.RowOf(func(c *storagev1.VolumeAttributesClass, now time.Time) []any {
			name := c.Name
			if c.Annotations["storageclass.kubernetes.io/is-default-class"] == "true" {
				name += " (default)"
			}
			return []any{name, c.DriverName, columns.Created(c, now)}
		}),
	}
}

// VolumeAttachment declares storage.k8s.io/v1 VolumeAttachment.
func VolumeAttachment() *kind.Kind {
	return &kind.Kind{
		Group: group, Version: "v1", Kind: "VolumeAttachment", Resource: "volumeattachments", HasStatus: true, NoGeneration: true,
		RequireResourceVersion: true,
		Validate:               kind.Check(validateAttachment),
		ValidateUpdate:         kind.CheckChange(validateAttachmentUpdate),
		ValidateStatus:         kind.CheckChange(validateAttachmentStatus),
		Columns: columns.Named(
			columns.Column{Name: "Attacher", Type: "string", Format: "name", Description: "The driver that attaches."},
			columns.Text("PV", "The volume."),
			columns.Text("Node", "The node."),
			columns.Flag("Attached", "Whether it is attached."),
			columns.Age(),
		),
		Row: kind.RowOf(func(a *storagev1.VolumeAttachment, now time.Time) []any {
			return []any{a.Name, a.Spec.Attacher, columns.Deref(a.Spec.Source.PersistentVolumeName, ""), a.Spec.NodeName, a.Status.Attached, columns.Created(a, now)}
		}),
	}
}

// CSINode declares storage.k8s.io/v1 CSINode.
func CSINode() *kind.Kind {
	return &kind.Kind{
		Group: group, Version: "v1", Kind: "CSINode", Resource: "csinodes", NoGeneration: true,
		RequireResourceVersion: true,
		Default: kind.Each(func(n *storagev1.CSINode) {
			if len(n.Spec.Drivers) == 0 {
				n.Spec.Drivers = nil
			}
		}),
		Validate:       kind.Check(validateCSINode),
		ValidateUpdate: kind.CheckChange(validateCSINodeUpdate),
		Columns:        columns.Named(columns.Count("Drivers", "Number of drivers on the node."), columns.Age()),
		Row: kind.RowOf(func(n *storagev1.CSINode, now time.Time) []any {
			return []any{n.Name, int64(len(n.Spec.Drivers)), columns.Created(n, now)}
		}),
	}
}

// CSIStorageCapacity declares storage.k8s.io/v1 CSIStorageCapacity.
func CSIStorageCapacity() *kind.Kind {
	return &kind.Kind{
		Group: group, Version: "v1", Kind: "CSIStorageCapacity", Resource: "csistoragecapacities", Namespaced: true, NoGeneration: true,
		RequireResourceVersion: true,
		Validate:               kind.Check(validateCapacity),
		ValidateUpdate:         kind.CheckChange(validateCapacityUpdate),
		Columns:                columns.Named(columns.CreatedAt()),
		Row: kind.RowOf(func(c *storagev1.CSIStorageCapacity, _ time.Time) []any {
			return []any{c.Name, c.CreationTimestamp.UTC().Format(time.RFC3339)}
		}),
	}
}

// CSIDriver declares storage.k8s.io/v1 CSIDriver.
func CSIDriver() *kind.Kind {
	return &kind.Kind{
		Group: group, Version: "v1", Kind: "CSIDriver", Resource: "csidrivers", NoGeneration: true, LateGeneration: true,
		RequireResourceVersion: true,
		Default: kind.Each(func(d *storagev1.CSIDriver) {
			s := &d.Spec
			set(&s.AttachRequired, true)
			set(&s.PodInfoOnMount, false)
			set(&s.StorageCapacity, false)
			set(&s.FSGroupPolicy, storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy)
			if len(s.VolumeLifecycleModes) == 0 {
				s.VolumeLifecycleModes = []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecyclePersistent}
			}
			set(&s.RequiresRepublish, false)
			set(&s.SELinuxMount, false)
		}),
		Validate:       kind.Check(validateDriver),
		ValidateUpdate: kind.CheckChange(validateDriverUpdate),
		Columns: columns.Named(
			columns.Flag("AttachRequired", "Whether volumes are attached before they are mounted."),
			columns.Flag("PodInfoOnMount", "Whether the driver is told of the pod."),
			columns.Flag("StorageCapacity", "Whether free capacity guides scheduling."),
			columns.Text("TokenRequests", "Audiences of the tokens that it is given."),
			columns.Flag("RequiresRepublish", "Whether it is asked again while a pod runs."),
			columns.Text("Modes", "Kinds of volumes that it serves."),
			columns.Age(),
		),
		Row: kind.RowOf(func(d *storagev1.CSIDriver, now time.Time) []any {
			var modes, tokens []string
			for _, m := range d.Spec.VolumeLifecycleModes {
				modes = append(modes, string(m))
			}
			for _, t := range d.Spec.TokenRequests {
				tokens = append(tokens, t.Audience)
			}
			return []any{d.Name, columns.Deref(d.Spec.AttachRequired, true), columns.Deref(d.Spec.PodInfoOnMount, false), columns.Deref(d.Spec.StorageCapacity, false),
				columns.Or(strings.Join(tokens, ","), columns.Unset), columns.Deref(d.Spec.RequiresRepublish, false),
				columns.Or(strings.Join(modes, ","), columns.None), columns.Created(d, now)}
		}),
	}
}

// set makes *p point to v unless it points somewhere.
func set[T any](p **T, v T) {
	if *p == nil {
		*p = &v
	}
}
