// Package coordination declares leases.
package coordination

import (
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"

	"knarr.dev/knarr/api/columns"
	"knarr.dev/knarr/api/kind"
)

// Lease declares coordination.k8s.io/v1 Lease.
func Lease() *kind.Kind {
	return &kind.Kind{
		Group: "coordination.k8s.io", Version: "v1", Kind: "Lease", Resource: "leases", Namespaced: true, NoGeneration: true, AllowCreateOnUpdate: true,
		RequireResourceVersion: true,
		Validate:               kind.Check(validateLease),
		Columns:                columns.Named(columns.Text("Holder", "Who holds the lease."), columns.Age()),
		Row: kind.RowOf(func(l *coordinationv1.Lease, now time.Time) []any {
			return []any{l.Name, columns.Deref(l.Spec.HolderIdentity, ""), columns.Created(l, now)}
		}),
	}
}
