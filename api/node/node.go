// Package node declares runtime classes. (The Node itself is of the core group.)
package node

import (
	"time"

	nodev1 "k8s.io/api/node/v1"

	"knarr.dev/knarr/api/columns"
	"knarr.dev/knarr/api/kind"
)

// RuntimeClass declares node.k8s.io/v1 RuntimeClass.
func RuntimeClass() *kind.Kind {
	return &kind.Kind{
		Group: "node.k8s.io", Version: "v1", Kind: "RuntimeClass", Resource: "runtimeclasses", NoGeneration: true,
		AllowCreateOnUpdate: true, RequireResourceVersion: true,
		Validate:       kind.Check(validateRuntimeClass),
		ValidateUpdate: kind.CheckChange(validateRuntimeClassUpdate),
		Columns:        columns.Named(columns.Text("Handler", "The runtime's own name for it."), columns.Age()),
		Row: kind.RowOf(func(c *nodev1.RuntimeClass, now time.Time) []any {
			return []any{c.Name, c.Handler, columns.Created(c, now)}
		}),
	}
}
