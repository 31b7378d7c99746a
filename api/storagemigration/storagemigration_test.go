package storagemigration

import (
	"fmt"
	"slices"
	"testing"
	"time"

	storagemigrationv1beta1 "k8s.io/api/storagemigration/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func migration(group, resource, rv string, conditions ...string) *storagemigrationv1beta1.StorageVersionMigration {
	m := &storagemigrationv1beta1.StorageVersionMigration{}
	m.Spec.Resource = metav1.GroupResource{Group: group, Resource: resource}
	m.Status.ResourceVersion = rv
	for _, c := range conditions {
		m.Status.Conditions = append(m.Status.Conditions, metav1.Condition{Type: c, Status: "True", Reason: "R", LastTransitionTime: metav1.Unix(1, 0)})
	}
	return m
}

// As upstream's API server v1.36.3 answers.
func TestValidate(t *testing.T) {
	for _, c := range []struct{ group, resource, want string }{
		{"apps", "deployments", "[]"},
		{"", "pods", "[]"},
		{"", "", "[spec.resource.resource: Required value: resource is required to be set]"},
		{"", "pods/status", `[spec.resource.resource: Invalid value: "pods/status": a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')]`},
		{"A", "pods", `[spec.resource.group: Invalid value: "A": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')]`},
	} {
		errs := validate(migration(c.group, c.resource, ""))
		if got := sprint(errs); got != c.want {
			t.Errorf("%s/%s: %s, want %s", c.group, c.resource, got, c.want)
		}
	}
	old := migration("", "pods", "")
	if got, want := sprint(validateUpdate(migration("", "nodes", ""), old)), `[spec: Invalid value: {"resource":{"group":"","resource":"nodes"}}: field is immutable]`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestValidateStatus(t *testing.T) {
	m := func(rv string, conditions ...string) *storagemigrationv1beta1.StorageVersionMigration {
		return migration("", "pods", rv, conditions...)
	}
	for _, c := range []struct {
		now, old *storagemigrationv1beta1.StorageVersionMigration
		want     []string
	}{
		{m("7", "Running"), m(""), nil},
		{m("7", "Succeeded", "Running"), m("7", "Running"), nil},
		{m("7", "Succeeded", "Failed"), m("7"), []string{"Both success and failed conditions cannot be true at the same time"}},
		{m("7", "Running"), m("7", "Succeeded"), []string{"Success condition cannot be set to false once it is true"}},
		{m("7"), m("7", "Failed"), []string{"Failed condition cannot be set to false once it is true"}},
		{m("x"), m(""), []string{"resource version is not well formed: x"}},
		{m("0"), m(""), []string{"resource version is not well formed: 0"}},
		{m("-1"), m("7"), []string{"resource version is not well formed: -1", "field is immutable"}},
		{m("8"), m("7"), []string{"field is immutable"}},
		{m(""), m("7"), []string{"field is immutable"}},
	} {
		var got []string
		for _, e := range validateStatus(c.now, c.old) {
			got = append(got, e.Detail)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%v after %v: %q, want %q", c.now.Status, c.old.Status, got, c.want)
		}
	}
}

func TestRow(t *testing.T) {
	row := StorageVersionMigration().Row
	for want, m := range map[string]*storagemigrationv1beta1.StorageVersionMigration{
		"[ deployments.apps Unknown]":  migration("apps", "deployments", ""),
		"[ pods Running]":              migration("", "pods", "", "Running"),
		"[ pods Succeeded]":            migration("", "pods", "", "Succeeded"),
		"[ things.example.com Failed]": migration("example.com", "things", "", "Failed"),
	} {
		if got := fmt.Sprint(row(m, time.Time{})); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

func sprint(errs field.ErrorList) string {
	out := []string{}
	for _, e := range errs {
		out = append(out, e.Error())
	}
	return fmt.Sprint(out)
}
