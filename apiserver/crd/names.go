package crd

import (
	"fmt"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/apiextensions"
)

// taken are the names that other definitions of a group have been granted.
type taken struct{ resources, kinds map[string]bool }

func namesTaken(others []*apiextensionsv1.CustomResourceDefinition) taken {
	t := taken{resources: map[string]bool{}, kinds: map[string]bool{}}
	for _, o := range others {
		n := o.Status.AcceptedNames
		for _, name := range append([]string{n.Plural, n.Singular}, n.ShortNames...) {
			if name != "" {
				t.resources[name] = true
			}
		}
		for _, name := range []string{n.Kind, n.ListKind} {
			if name != "" {
				t.kinds[name] = true
			}
		}
	}
	return t
}

func condition(t apiextensionsv1.CustomResourceDefinitionConditionType, status apiextensionsv1.ConditionStatus, reason, message string) apiextensionsv1.CustomResourceDefinitionCondition {
	return apiextensionsv1.CustomResourceDefinitionCondition{Type: t, Status: status, Reason: reason, Message: message}
}

// judge returns the definition with the status that it deserves beside others of
// its group. Each name is granted by itself; the definition is established when
// all are.
func judge(in *apiextensionsv1.CustomResourceDefinition, others []*apiextensionsv1.CustomResourceDefinition, now metav1.Time) *apiextensionsv1.CustomResourceDefinition {
	d := in.DeepCopy()
	t := namesTaken(others)
	accepted := condition(apiextensionsv1.NamesAccepted, apiextensionsv1.ConditionTrue, "NoConflicts", "no conflicts found")
	want, have := d.Spec.Names, &d.Status.AcceptedNames
	refuse := func(what, name string) {
		accepted.Status, accepted.Reason, accepted.Message = apiextensionsv1.ConditionFalse, what+"Conflict", fmt.Sprintf("%q is already in use", name)
	}
	grant := func(what string, used map[string]bool, want string, have *string) {
		switch {
		case *have == want:
		case used[want]:
			refuse(what, want)
		default:
			*have = want
		}
	}
	grant("Plural", t.resources, want.Plural, &have.Plural)
	grant("Singular", t.resources, want.Singular, &have.Singular)
	short := true
	for _, name := range want.ShortNames {
		if t.resources[name] {
			refuse("ShortNames", name)
			short = false
		}
	}
	if short {
		have.ShortNames = want.ShortNames
	}
	grant("Kind", t.kinds, want.Kind, &have.Kind)
	grant("ListKind", t.kinds, want.ListKind, &have.ListKind)
	have.Categories = want.Categories

	set := func(c apiextensionsv1.CustomResourceDefinitionCondition) { setCondition(d, c, now) }
	set(accepted)
	switch {
	case apihelpers.IsCRDConditionTrue(d, apiextensionsv1.Established):
	case accepted.Status == apiextensionsv1.ConditionTrue:
		set(condition(apiextensionsv1.Established, apiextensionsv1.ConditionTrue, "InitialNamesAccepted", "the initial names have been accepted"))
	default:
		set(condition(apiextensionsv1.Established, apiextensionsv1.ConditionFalse, "NotAccepted", "not all names are accepted"))
	}
	if text := violations(d); text != "" {
		set(condition(apiextensionsv1.NonStructuralSchema, apiextensionsv1.ConditionTrue, "Violations", text))
	} else {
		apihelpers.RemoveCRDCondition(d, apiextensionsv1.NonStructuralSchema)
	}
	if apihelpers.IsProtectedCommunityGroup(d.Spec.Group) {
		set(approval(d))
	} else {
		apihelpers.RemoveCRDCondition(d, apiextensionsv1.KubernetesAPIApprovalPolicyConformant)
	}
	return d
}

// setCondition keeps the time of a condition whose status stays.
func setCondition(d *apiextensionsv1.CustomResourceDefinition, c apiextensionsv1.CustomResourceDefinitionCondition, now metav1.Time) {
	c.LastTransitionTime = now
	for i, old := range d.Status.Conditions {
		if old.Type == c.Type {
			if old.Status == c.Status {
				c.LastTransitionTime = old.LastTransitionTime
			}
			d.Status.Conditions[i] = c
			return
		}
	}
	d.Status.Conditions = append(d.Status.Conditions, c)
}

// violations says how the schemas fail to be structural. Definitions of v1 cannot,
// those that an older server stored can.
func violations(d *apiextensionsv1.CustomResourceDefinition) string {
	if !d.Spec.PreserveUnknownFields {
		return ""
	}
	in, err := apiextensions.Internal(d)
	if err != nil {
		return err.Error()
	}
	var errs field.ErrorList
	for i, v := range in.Spec.Versions {
		if v.Schema == nil || v.Schema.OpenAPIV3Schema == nil {
			continue
		}
		path := field.NewPath("spec", "versions").Index(i).Child("schema", "openAPIV3Schema")
		s, err := structural.NewStructural(v.Schema.OpenAPIV3Schema)
		if err != nil {
			errs = append(errs, field.Invalid(path, "", err.Error()))
			continue
		}
		errs = append(errs, structural.ValidateStructural(path, s)...)
	}
	if len(errs) == 0 {
		return ""
	}
	return errs.ToAggregate().Error()
}

// approval is whether a definition in a group of the Kubernetes community names
// its approval.
func approval(d *apiextensionsv1.CustomResourceDefinition) apiextensionsv1.CustomResourceDefinitionCondition {
	state, reason := apihelpers.GetAPIApprovalState(d.Annotations)
	c := condition(apiextensionsv1.KubernetesAPIApprovalPolicyConformant, apiextensionsv1.ConditionFalse, "", reason)
	switch state {
	case apihelpers.APIApprovalInvalid:
		c.Reason = "InvalidAnnotation"
	case apihelpers.APIApprovalMissing:
		c.Reason = "MissingAnnotation"
	case apihelpers.APIApproved:
		c.Reason, c.Status = "ApprovedAnnotation", apiextensionsv1.ConditionTrue
	case apihelpers.APIApprovalBypassed:
		c.Reason = "UnapprovedAnnotation"
	default:
		c.Status, c.Reason = apiextensionsv1.ConditionUnknown, "UnknownAnnotation"
	}
	return c
}
