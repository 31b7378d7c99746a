// Package admission holds the steps that each write passes after authorization,
// in one ordered list. A step is a file here and a line in List.
package admission

import (
	"log/slog"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/admission/hooks"
	"knarr.dev/knarr/apiserver/admission/match"
	"knarr.dev/knarr/apiserver/admission/policies"
	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/apiserver/registry"
	"knarr.dev/knarr/apiserver/webhook"
)

// Lookup reads an object from the caches; nil if it does not exist.
type Lookup func(gvr schema.GroupVersionResource, namespace, name string) kind.Object

// Each visits all objects of a resource in the caches.
type Each func(gvr schema.GroupVersionResource, namespace string, visit func(kind.Object) bool)

// Deps is what steps may ask. The functions must work by the time of the first
// write.
type Deps struct {
	Lookup Lookup
	Each   Each
	Now    func() time.Time
	// ChangeStatus writes an object's status.
	ChangeStatus ChangeStatus
	// Stamp rises with every change of a resource's objects, and of what is served.
	Stamp func(schema.GroupVersionResource) int64
	// Versions lists a resource's versions, itself first.
	Versions func(*registry.Resource) []*registry.Resource
	// Kind finds the resource of a kind; nil if it is not served.
	Kind func(schema.GroupVersionKind) *registry.Resource
	// Types is how objects of a resource are merged.
	Types func(*registry.Resource) (managedfields.TypeConverter, error)
	// Caller calls webhooks.
	Caller *webhook.Caller
	// Authorize tells what a user may do, for expressions that ask.
	Authorize func(*auth.Action) bool
	// Rules shows the rules that a user holds in a namespace; "" is the whole cluster.
	Rules func(user *authenticationv1.UserInfo, namespace string, visit func([]rbacv1.PolicyRule) bool)
	// PodSecurity says what holds where namespaces say nothing, and for whom nothing
	// holds.
	PodSecurity PodSecurity
	// EventLimits bound how many events are written; none: EventRateLimit is off.
	EventLimits []EventLimit
	Log         *slog.Logger
}

func (d Deps) hooks() hooks.Config {
	return hooks.Config{Each: d.Each, Labels: match.NamespaceLabels(d.Lookup), Stamp: d.Stamp, Versions: d.Versions,
		Caller: d.Caller, Authorize: d.Authorize, Log: d.Log}
}

func (d Deps) policies() policies.Config {
	return policies.Config{Lookup: d.Lookup, Each: d.Each, Stamp: d.Stamp, Versions: d.Versions, Kind: d.Kind, Types: d.Types,
		Authorize: d.Authorize, Log: d.Log}
}

// List returns the steps in their order.
func List(d Deps) []registry.Admission {
	return []registry.Admission{
		namespaceLifecycle(d),
		limitRanger(d),
		serviceAccount(d),
		nodeTaint(),
		podTopology(d),
		priority(d),
		tolerations(),
		defaultStorageClass(d),
		storageProtection(),
		claimResize(d),
		podResize(d),
		runtimeClass(d),
		certificateRequest(d),
		deviceAdmins(d),
		defaultIngressClass(d),
		nodeRestriction(d),
		escalation(d),
		eventRate(d),
		policies.Mutating(d.policies()),
		hooks.Mutating(d.hooks()),
		podSecurity(d),
		policies.Validating(d.policies()),
		hooks.Validating(d.hooks()),
		resourceQuota(d),
	}
}

var (
	pods  = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	nodes = schema.GroupVersionResource{Version: "v1", Resource: "nodes"}
)

func isPod(a *registry.Attributes) bool {
	return a.Resource.GVR() == pods && a.Subresource == ""
}
