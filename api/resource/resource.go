// Package resource declares the kinds of the group resource.k8s.io: devices that
// drivers publish, and claims of them (dynamic resource allocation).
//
// See https://kubernetes.io/docs/concepts/scheduling-eviction/dynamic-resource-allocation/
package resource

import (
	"strings"
	"time"

	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/fields"

	"knarr.dev/knarr/api/columns"
	"knarr.dev/knarr/api/kind"
)

const group = "resource.k8s.io"

// DeviceClass declares resource.k8s.io/v1 DeviceClass.
func DeviceClass() *kind.Kind {
	return &kind.Kind{
		Group: group, Version: "v1", Kind: "DeviceClass", Resource: "deviceclasses",
		Validate:       kind.Check(validateClass),
		ValidateUpdate: kind.CheckChange(validateClassUpdate),
	}
}

// ResourceClaim declares resource.k8s.io/v1 ResourceClaim.
func ResourceClaim() *kind.Kind {
	return &kind.Kind{
		Group: group, Version: "v1", Kind: "ResourceClaim", Resource: "resourceclaims", Namespaced: true, HasStatus: true, NoGeneration: true,
		Default:        kind.Each(func(c *resourcev1.ResourceClaim) { defaultRequests(&c.Spec.Devices.Requests) }),
		Validate:       kind.Check(validateClaim),
		ValidateUpdate: kind.CheckChange(validateClaimUpdate),
		ValidateStatus: kind.CheckChange(validateClaimStatus),
		Columns:        columns.Named(columns.Text("State", "Whether it is allocated, reserved, or being deleted."), columns.Age()),
		Row: kind.RowOf(func(c *resourcev1.ResourceClaim, now time.Time) []any {
			return []any{c.Name, state(c), columns.Created(c, now)}
		}),
	}
}

// state is a claim's state in words.
func state(c *resourcev1.ResourceClaim) string {
	var words []string
	if c.DeletionTimestamp != nil {
		words = append(words, "deleted")
	}
	if c.Status.Allocation == nil {
		if c.DeletionTimestamp == nil {
			words = append(words, "pending")
		}
	} else {
		words = append(words, "allocated")
		if len(c.Status.ReservedFor) > 0 {
			words = append(words, "reserved")
		}
	}
	return strings.Join(words, ",")
}

// ResourceClaimTemplate declares resource.k8s.io/v1 ResourceClaimTemplate.
func ResourceClaimTemplate() *kind.Kind {
	return &kind.Kind{
		Group: group, Version: "v1", Kind: "ResourceClaimTemplate", Resource: "resourceclaimtemplates", Namespaced: true, NoGeneration: true,
		Default:        kind.Each(func(t *resourcev1.ResourceClaimTemplate) { defaultRequests(&t.Spec.Spec.Devices.Requests) }),
		Validate:       kind.Check(validateTemplate),
		ValidateUpdate: kind.CheckChange(validateTemplateUpdate),
	}
}

// ResourceSlice declares resource.k8s.io/v1 ResourceSlice.
func ResourceSlice() *kind.Kind {
	return &kind.Kind{
		Group: group, Version: "v1", Kind: "ResourceSlice", Resource: "resourceslices",
		PrepareCreate:  kind.Each(prepareSlice),
		Validate:       kind.Check(validateSlice),
		ValidateUpdate: kind.CheckChange(validateSliceUpdate),
		Fields: kind.FieldsOf(func(s *resourcev1.ResourceSlice) fields.Set {
			return fields.Set{resourcev1.ResourceSliceSelectorNodeName: columns.Deref(s.Spec.NodeName, ""), resourcev1.ResourceSliceSelectorDriver: s.Spec.Driver}
		}),
		Columns: columns.Named(
			columns.Text("Node", "The node that has the devices."),
			columns.Text("Driver", "The driver that publishes them."),
			columns.Text("Pool", "The pool that they belong to."),
			columns.Age(),
		),
		Row: kind.RowOf(func(s *resourcev1.ResourceSlice, now time.Time) []any {
			return []any{s.Name, columns.Deref(s.Spec.NodeName, columns.Unset), s.Spec.Driver, s.Spec.Pool.Name, columns.Created(s, now)}
		}),
	}
}

// prepareSlice notes since when its devices are tainted.
func prepareSlice(s *resourcev1.ResourceSlice) {
	for i := range s.Spec.Devices {
		for j := range s.Spec.Devices[i].Taints {
			if t := &s.Spec.Devices[i].Taints[j]; t.TimeAdded == nil {
				t.TimeAdded = s.CreationTimestamp.DeepCopy()
			}
		}
	}
}

// defaultRequests fills how many devices a request asks for: one.
func defaultRequests(list *[]resourcev1.DeviceRequest) {
	requests := *list
	if len(requests) == 0 {
		*list = nil // an empty list is none, as in the other encoding
	}
	mode := func(m *resourcev1.DeviceAllocationMode, count *int64) {
		if *m == "" {
			*m = resourcev1.DeviceAllocationModeExactCount
		}
		if *m == resourcev1.DeviceAllocationModeExactCount && *count == 0 {
			*count = 1
		}
	}
	tolerate := func(ts []resourcev1.DeviceToleration) {
		for i := range ts {
			if ts[i].Operator == "" {
				ts[i].Operator = resourcev1.DeviceTolerationOpEqual
			}
		}
	}
	for i := range requests {
		if e := requests[i].Exactly; e != nil {
			mode(&e.AllocationMode, &e.Count)
			tolerate(e.Tolerations)
		}
		for j := range requests[i].FirstAvailable {
			s := &requests[i].FirstAvailable[j]
			mode(&s.AllocationMode, &s.Count)
			tolerate(s.Tolerations)
		}
	}
}
