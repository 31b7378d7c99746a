// Package scheduling declares priority classes.
package scheduling

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"

	"knarr.dev/knarr/api/columns"
	"knarr.dev/knarr/api/kind"
)

// PriorityClass declares scheduling.k8s.io/v1 PriorityClass.
func PriorityClass() *kind.Kind {
	return &kind.Kind{
		Group: "scheduling.k8s.io", Version: "v1", Kind: "PriorityClass", Resource: "priorityclasses", ShortNames: []string{"pc"}, FixedGeneration: true,
		Default: kind.Each(func(c *schedulingv1.PriorityClass) {
			if c.PreemptionPolicy == nil {
				lower := corev1.PreemptLowerPriority
				c.PreemptionPolicy = &lower
			}
		}),
		Validate:       kind.Check(validatePriorityClass),
		ValidateUpdate: kind.CheckChange(validatePriorityClassUpdate),
		Columns: columns.Named(
			columns.Count("Value", "The priority."),
			columns.Flag("Global-Default", "Whether pods without a class are of this one."),
			columns.Age(),
			columns.Text("PreemptionPolicy", "Whether its pods displace others."),
		),
		Row: kind.RowOf(func(c *schedulingv1.PriorityClass, now time.Time) []any {
			return []any{c.Name, int64(c.Value), c.GlobalDefault, columns.Created(c, now), string(columns.Deref(c.PreemptionPolicy, corev1.PreemptLowerPriority))}
		}),
	}
}
