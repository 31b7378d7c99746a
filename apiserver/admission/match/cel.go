package match

import (
	"context"

	celtypes "github.com/google/cel-go/common/types"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apiserver/pkg/admission"
	plugincel "k8s.io/apiserver/pkg/admission/plugin/cel"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/apiserver/registry"
)

// Versioned is a request as CEL expressions see it, in the version of res. Its
// objects must not be changed.
func Versioned(ctx context.Context, a *registry.Attributes, res *registry.Resource) (*admission.VersionedAttributes, error) {
	v := &admission.VersionedAttributes{VersionedKind: a.BodyKind}
	var object, old runtime.Object
	if a.BodyKind.Empty() {
		v.VersionedKind = res.GVK()
		o, err := res.Show(ctx, a.Resource, a.Object)
		if err != nil {
			return nil, err
		}
		was, err := res.Show(ctx, a.Resource, a.Old)
		if err != nil {
			return nil, err
		}
		object, old = o, was
	} else {
		object, old = a.Body, a.OldBody
	}
	v.VersionedObject, v.VersionedOldObject = object, old
	v.Attributes = admission.NewAttributesRecord(object, old, a.Kind(), NamespaceOf(a), a.Name, a.Requested.GVR(), a.Subresource,
		admission.Operation(a.Operation), a.Options, a.DryRun, userOf(a.User))
	return v, nil
}

func userOf(u *authenticationv1.UserInfo) user.Info {
	if u == nil {
		return &user.DefaultInfo{}
	}
	info := &user.DefaultInfo{Name: u.Username, UID: u.UID, Groups: u.Groups, Extra: map[string][]string{}}
	for k, v := range u.Extra {
		info.Extra[k] = v
	}
	return info
}

// Authorizer lets expressions ask what a user may do.
type Authorizer func(*auth.Action) bool

// Authorize implements authorizer.Authorizer.
func (f Authorizer) Authorize(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	who := a.GetUser()
	u := &authenticationv1.UserInfo{Username: who.GetName(), UID: who.GetUID(), Groups: who.GetGroups()}
	action := &auth.Action{User: u, Verb: a.GetVerb()}
	if a.IsResourceRequest() {
		action.Group, action.Version, action.Resource, action.Subresource = a.GetAPIGroup(), a.GetAPIVersion(), a.GetResource(), a.GetSubresource()
		action.Namespace, action.Name = a.GetNamespace(), a.GetName()
	} else {
		action.Path = a.GetPath()
	}
	if f(action) {
		return authorizer.DecisionAllow, "", nil
	}
	return authorizer.DecisionNoOpinion, action.Forbidden(), nil
}

// Conditions evaluates match conditions: false if one is false; else an error if
// one could not be evaluated.
func Conditions(ctx context.Context, compiled plugincel.ConditionEvaluator, v *admission.VersionedAttributes, params runtime.Object, authz Authorizer) (bool, error) {
	req := plugincel.CreateAdmissionRequest(v.Attributes, metav1.GroupVersionResource(v.GetResource()), metav1.GroupVersionKind(v.VersionedKind))
	results, _, err := compiled.ForInput(ctx, v, req, plugincel.OptionalVariableBindings{VersionedParams: params, Authorizer: authz}, nil, celconfig.RuntimeCELCostBudgetMatchConditions)
	if err != nil {
		return false, err
	}
	var errs []error
	for _, r := range results {
		if r.Error != nil {
			errs = append(errs, r.Error)
		} else if r.EvalResult == celtypes.False {
			return false, nil
		}
	}
	return true, utilerrors.NewAggregate(errs)
}
