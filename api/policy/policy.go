// Package policy declares pod disruption budgets.
package policy

import (
	"time"

	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"knarr.dev/knarr/api/check"
	"knarr.dev/knarr/api/columns"
	"knarr.dev/knarr/api/kind"
)

// PodDisruptionBudget declares policy/v1 PodDisruptionBudget.
func PodDisruptionBudget() *kind.Kind {
	return &kind.Kind{
		Group: "policy", Version: "v1", Kind: "PodDisruptionBudget", Resource: "poddisruptionbudgets", ShortNames: []string{"pdb"}, Namespaced: true, HasStatus: true,
		RequireResourceVersion: true, ValidName: check.PathSegment,
		Validate:       kind.Check(validateBudget),
		ValidateStatus: kind.CheckChange(validateBudgetStatus),
		Columns: columns.Named(
			columns.Text("Min Available", "Pods that must stay."),
			columns.Text("Max Unavailable", "Pods that may be away."),
			columns.Count("Allowed Disruptions", "Pods that may go now."),
			columns.Age(),
		),
		Row: kind.RowOf(func(b *policyv1.PodDisruptionBudget, now time.Time) []any {
			return []any{b.Name, number(b.Spec.MinAvailable), number(b.Spec.MaxUnavailable), int64(b.Status.DisruptionsAllowed), columns.Created(b, now)}
		}),
	}
}

func number(v *intstr.IntOrString) string {
	if v == nil {
		return "N/A"
	}
	return v.String()
}
