// Package storagemigration declares migrations of what is stored to the form in which
// it would be stored now.
package storagemigration

import (
	"time"

	storagemigrationv1beta1 "k8s.io/api/storagemigration/v1beta1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"knarr.dev/knarr/api/columns"
	"knarr.dev/knarr/api/kind"
)

// StorageVersionMigration declares storagemigration.k8s.io/v1beta1
// StorageVersionMigration.
func StorageVersionMigration() *kind.Kind {
	return &kind.Kind{
		Group: "storagemigration.k8s.io", Version: "v1beta1", Kind: "StorageVersionMigration", Resource: "storageversionmigrations", HasStatus: true, NoGeneration: true,
		Validate:       kind.Check(validate),
		ValidateUpdate: kind.CheckChange(validateUpdate),
		ValidateStatus: kind.CheckChange(validateStatus),
		Columns: []metav1.TableColumnDefinition{
			columns.Text("Name", "Its name."), // without the format of others
			columns.Text("Resource", "What is migrated."),
			columns.Text("Status", "How far that is."),
		},
		Row: kind.RowOf(func(m *storagemigrationv1beta1.StorageVersionMigration, _ time.Time) []any {
			return []any{m.Name, schema.GroupResource(m.Spec.Resource).String(), state(m)}
		}),
	}
}

// state is the condition that counts.
func state(m *storagemigrationv1beta1.StorageVersionMigration) string {
	for _, t := range []storagemigrationv1beta1.MigrationConditionType{
		storagemigrationv1beta1.MigrationSucceeded, storagemigrationv1beta1.MigrationFailed, storagemigrationv1beta1.MigrationRunning,
	} {
		if Is(m, t) {
			return string(t)
		}
	}
	return "Unknown"
}

// Is tells whether a condition is true.
func Is(m *storagemigrationv1beta1.StorageVersionMigration, t storagemigrationv1beta1.MigrationConditionType) bool {
	return meta.IsStatusConditionTrue(m.Status.Conditions, string(t))
}
