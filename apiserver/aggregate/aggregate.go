// Package aggregate passes requests for groups and versions that extension
// servers serve on to them, as APIServices say, and tells whether they can.
//
//	APIService ─> is its Service there, has it endpoints? ─> does it answer
//	discovery? ─> condition Available ─> requests are proxied, else 503
//
// An extension server learns who asks from the headers X-Remote-*, which it
// believes because the front proxy's certificate comes with them.
//
// See https://kubernetes.io/docs/tasks/extend-kubernetes/configure-aggregation-layer/
package aggregate

import (
	"crypto/tls"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apiregv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/apiserver/registry"
	"knarr.dev/knarr/apiserver/watchcache"
	"knarr.dev/knarr/apiserver/webhook"
)

// Config is what an Aggregator is made of.
type Config struct {
	Registry *registry.Registry
	// Local lists the groups and versions that this server serves itself.
	Local func() []Local
	// Resolve finds where Services are reached.
	Resolve webhook.Resolver
	// FrontProxy is the certificate that extension servers believe.
	FrontProxy tls.Certificate
	Now        func() time.Time
	Log        *slog.Logger
}

// Local is a group and version that this server serves.
type Local struct {
	schema.GroupVersion
	Custom bool // by a CustomResourceDefinition
}

// Aggregator serves the APIServices of a registry.
type Aggregator struct {
	Config
	self                         *authenticationv1.UserInfo
	services, core, slices, crds *registry.Resource

	table atomic.Pointer[map[schema.GroupVersion]*remote]
	seen  atomic.Int64 // rises with every change of table

	mu     sync.Mutex // held while state changes
	state  map[string]*remote
	wake   chan struct{} // signalled when a check has ended
	checks sync.WaitGroup
}

// New returns an aggregator; Run makes it follow the APIServices.
func New(c Config) *Aggregator {
	crd := schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	a := &Aggregator{
		Config: c, self: auth.Component("system:apiserver", auth.GroupMasters), state: map[string]*remote{}, wake: make(chan struct{}, 1),
		services: c.Registry.Resource(apiregv1.SchemeGroupVersion.WithResource("apiservices")),
		core:     c.Registry.Resource(corev1.SchemeGroupVersion.WithResource("services")),
		slices:   c.Registry.Resource(discoveryv1.SchemeGroupVersion.WithResource("endpointslices")),
		crds:     c.Registry.Resource(crd),
	}
	a.publish()
	return a
}

// Remote is a group and version that an extension server serves, for discovery.
type Remote struct {
	schema.GroupVersion
	GroupPriority, VersionPriority int32
	// Resources are those that the server told last; Current tells that it is
	// available now.
	Resources *metav1.APIResourceList
	Current   bool
}

// Generation rises whenever discovery changes.
func (a *Aggregator) Generation() int64 { return a.seen.Load() + a.services.Cache.Changes() }

// Remotes lists what extension servers serve.
func (a *Aggregator) Remotes() []Remote {
	var out []Remote
	for gv, r := range *a.table.Load() {
		spec := &r.service.Spec
		out = append(out, Remote{GroupVersion: gv, GroupPriority: spec.GroupPriorityMinimum, VersionPriority: spec.VersionPriority,
			Resources: r.resources, Current: r.available})
	}
	return out
}

// Priority orders discovery: groups by their highest, then the versions of a
// group, both downwards.
func (a *Aggregator) Priority(gv schema.GroupVersion, custom bool) (group, version int32) {
	if it := a.services.Cache.Get(gv.Version + "." + gv.Group); it != nil {
		s := it.Object.(*apiregv1.APIService).Spec
		return s.GroupPriorityMinimum, s.VersionPriority
	}
	return priorityOf(gv, custom)
}

// all lists the APIServices.
func (a *Aggregator) all() (out []*apiregv1.APIService) {
	a.services.Cache.Snapshot().Ascend("", "", func(i *watchcache.Item) bool {
		out = append(out, i.Object.(*apiregv1.APIService))
		return true
	})
	return out
}

// publish makes the present state the one that requests see.
func (a *Aggregator) publish() {
	t := make(map[schema.GroupVersion]*remote, len(a.state))
	for _, r := range a.state {
		shown := *r
		t[r.gv()] = &shown
	}
	a.table.Store(&t)
	a.seen.Add(1)
}
