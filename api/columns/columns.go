// Package columns makes the tables that kubectl get prints: column definitions
// and the cell values that several kinds share.
package columns

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/duration"
)

// Values of cells that have none.
const (
	None    = "<none>"
	Unknown = "<unknown>"
	Unset   = "<unset>"
)

// Column is one column.
type Column = metav1.TableColumnDefinition

// Text is a column of strings.
func Text(name, doc string) Column { return Column{Name: name, Type: "string", Description: doc} }

// Count is a column of whole numbers.
func Count(name, doc string) Column { return Column{Name: name, Type: "integer", Description: doc} }

// Flag is a column of true and false.
func Flag(name, doc string) Column { return Column{Name: name, Type: "boolean", Description: doc} }

// Wide marks columns as shown by kubectl get -o wide alone.
func Wide(cols ...Column) []Column {
	for i := range cols {
		cols[i].Priority = 1
	}
	return cols
}

// Name is the first column of nearly every kind.
func Name() Column {
	return Column{Name: "Name", Type: "string", Format: "name", Description: "Name of the object, unique among its kind in its namespace."}
}

// Age is the time since the object was made.
func Age() Column {
	return Column{Name: "Age", Type: "string", Description: "Time since the object was created."}
}

// CreatedAt is the column of kinds that show when they were made, not for how long
// they are there.
func CreatedAt() Column {
	return Column{Name: "Created At", Type: "date", Description: "When the object was created."}
}

// Named puts Name before cols.
func Named(cols ...Column) []Column { return append([]Column{Name()}, cols...) }

// Workload are the wide columns of kinds with a pod template.
func Workload() []Column {
	return Wide(
		Text("Containers", "Names of the template's containers."),
		Text("Images", "Images of the template's containers."),
		Text("Selector", "Labels by which the pods are found."),
	)
}

// Since prints the time from t to now as kubectl does.
func Since(t metav1.Time, now time.Time) string { return SinceTime(t.Time, now) }

// SinceTime is Since for times of any precision.
func SinceTime(t, now time.Time) string {
	if t.IsZero() {
		return Unknown
	}
	return duration.HumanDuration(now.Sub(t))
}

// Created prints the age of an object.
func Created(o metav1.Object, now time.Time) string { return Since(o.GetCreationTimestamp(), now) }

// Images returns the joined names and images of containers.
func Images(containers []corev1.Container) (names, images string) {
	n, i := make([]string, len(containers)), make([]string, len(containers))
	for k := range containers {
		n[k], i[k] = containers[k].Name, containers[k].Image
	}
	return strings.Join(n, ","), strings.Join(i, ",")
}

// Labels prints a map of labels.
func Labels(m map[string]string) string { return labels.FormatLabels(m) }

// Selector prints a label selector.
func Selector(s *metav1.LabelSelector) string { return metav1.FormatLabelSelector(s) }

// Or returns s, or other when s is empty.
func Or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// Deref returns what p points to, or other.
func Deref[T any](p *T, other T) T {
	if p == nil {
		return other
	}
	return *p
}

// accessModes in the order in which they are printed.
var accessModes = []struct {
	mode  corev1.PersistentVolumeAccessMode
	short string
}{
	{corev1.ReadWriteOnce, "RWO"}, {corev1.ReadOnlyMany, "ROX"},
	{corev1.ReadWriteMany, "RWX"}, {corev1.ReadWriteOncePod, "RWOP"},
}

// AccessModes prints access modes in their short forms.
func AccessModes(modes []corev1.PersistentVolumeAccessMode) string {
	var out []string
	for _, m := range accessModes {
		if slices.Contains(modes, m.mode) {
			out = append(out, m.short)
		}
	}
	return strings.Join(out, ",")
}

// More joins the first n of items and says how many were left out.
func More(items []string, n int) string {
	if len(items) == 0 {
		return None
	}
	if len(items) <= n {
		return strings.Join(items, ",")
	}
	return fmt.Sprintf("%s + %d more...", strings.Join(items[:n], ","), len(items)-n)
}
