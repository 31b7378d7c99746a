package apiserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/managedfields"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/admission"
	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/apiserver/auth/node"
	"knarr.dev/knarr/apiserver/registry"
	"knarr.dev/knarr/apiserver/watchcache"
	"knarr.dev/knarr/apiserver/webhook"
)

// Lookup reads the registry's caches for admission and authorization. Its parts
// are needed to open a registry, so Registry is set afterwards and before the
// first request.
type Lookup struct{ Registry *registry.Registry }

var _ auth.Roles = (*Lookup)(nil)

// One returns an object, or nil if it does not exist.
func (l *Lookup) One(gvr schema.GroupVersionResource, namespace, name string) kind.Object {
	res := l.Registry.Resource(gvr)
	if res == nil {
		return nil
	}
	key := name
	if res.Namespaced {
		key = namespace + "/" + name
	}
	if it := res.Cache.Get(key); it != nil {
		return it.Object
	}
	return nil
}

// Each visits the objects of a namespace ("" for all) until visit returns false.
func (l *Lookup) Each(gvr schema.GroupVersionResource, namespace string, visit func(kind.Object) bool) {
	res := l.Registry.Resource(gvr)
	if res == nil || res.Cache.Len() == 0 {
		return
	}
	prefix := ""
	if namespace != "" {
		prefix = namespace + "/"
	}
	res.Cache.Snapshot().Ascend(prefix, "", func(i *watchcache.Item) bool { return visit(i.Object) })
}

// Stamp rises with every change of a resource's objects, and of what is served.
func (l *Lookup) Stamp(gvr schema.GroupVersionResource) int64 {
	stamp := l.Registry.Generation()
	if res := l.Registry.Resource(gvr); res != nil {
		stamp += res.Cache.Changes()
	}
	return stamp
}

// ChangeStatus changes the status of an object that the caches have, as the server
// itself. It is tried again when another writer was faster.
func (l *Lookup) ChangeStatus(ctx context.Context, gvr schema.GroupVersionResource, namespace, name string, change func(kind.Object) error) error {
	q := registry.Request{User: auth.Component("system:apiserver", auth.GroupMasters), Resource: l.Registry.Resource(gvr), Namespace: namespace, Name: name, Subresource: "status"}
	for {
		old := l.One(gvr, namespace, name)
		if old == nil {
			return nil // gone: nothing to change
		}
		next := old.DeepCopyObject().(kind.Object)
		if err := change(next); err != nil {
			return err
		}
		_, _, err := l.Registry.Update(ctx, q, next)
		if !apierrors.IsConflict(err) {
			return err
		}
	}
}

// Graph is what the Node authorizer knows of nodes' pods.
func (l *Lookup) Graph() *node.Cached {
	return &node.Cached{Registry: func() *registry.Registry { return l.Registry }}
}

// Bearers are the sorts of bearer tokens that the caches' objects define; tokens
// has signed those of service accounts.
func (l *Lookup) Bearers(tokens *auth.Tokens, now func() time.Time, log *slog.Logger) []auth.Bearer {
	secrets, accounts := corev1.SchemeGroupVersion.WithResource("secrets"), corev1.SchemeGroupVersion.WithResource("serviceaccounts")
	secret := func(namespace, name string) *corev1.Secret {
		s, _ := l.One(secrets, namespace, name).(*corev1.Secret)
		return s
	}
	return []auth.Bearer{
		&auth.BootstrapTokens{Now: now, Secret: func(name string) *corev1.Secret { return secret(auth.SecretNamespace, name) }},
		&auth.LegacyTokens{
			Tokens: tokens, Now: now, Secret: secret,
			ServiceAccount: func(namespace, name string) *corev1.ServiceAccount {
				sa, _ := l.One(accounts, namespace, name).(*corev1.ServiceAccount)
				return sa
			},
			Used: func(ctx context.Context, s *corev1.Secret, day string) {
				q := registry.Request{User: auth.Component("system:apiserver", auth.GroupMasters), Resource: l.Registry.Resource(secrets), Namespace: s.Namespace, Name: s.Name}
				p := registry.Patch{Type: types.MergePatchType, Data: fmt.Appendf(nil, `{"metadata":{"uid":%q,"labels":{%q:%q}}}`, s.UID, auth.LabelLastUsed, day)}
				if _, _, err := l.Registry.Patch(ctx, q, p); err != nil {
					log.Warn("the use of a token could not be noted on its secret", "namespace", s.Namespace, "secret", s.Name, "error", err)
				}
			},
		},
	}
}

// Kind finds the resource of a kind; nil if it is not served.
func (l *Lookup) Kind(gvk schema.GroupVersionKind) *registry.Resource {
	for _, res := range l.Registry.Resources() {
		if res.GVK() == gvk {
			return res
		}
	}
	return nil
}

// Admission returns what admission asks of the rest of the server; caller calls its
// webhooks.
func (l *Lookup) Admission(authz *auth.Chain, caller *webhook.Caller, now func() time.Time, log *slog.Logger) admission.Deps {
	return admission.Deps{
		Lookup: l.One, Each: l.Each, ChangeStatus: l.ChangeStatus, Now: now, Stamp: l.Stamp, Caller: caller, Authorize: authz.Allowed, Rules: authz.Visit, Log: log,
		Versions: func(res *registry.Resource) []*registry.Resource { return l.Registry.Versions(res) },
		Types:    func(res *registry.Resource) (managedfields.TypeConverter, error) { return l.Registry.Types(res) },
		Kind:     l.Kind,
	}
}

func rbacResource(name string) schema.GroupVersionResource {
	return rbacv1.SchemeGroupVersion.WithResource(name)
}

// Generation implements auth.Roles.
func (l *Lookup) Generation() (sum int64) {
	for _, name := range []string{"clusterroles", "clusterrolebindings", "roles", "rolebindings"} {
		if res := l.Registry.Resource(rbacResource(name)); res != nil {
			sum += res.Cache.Changes()
		}
	}
	return sum
}

// ClusterRoleBindings implements auth.Roles.
func (l *Lookup) ClusterRoleBindings(visit func(*rbacv1.ClusterRoleBinding) bool) {
	l.Each(rbacResource("clusterrolebindings"), "", func(o kind.Object) bool { return visit(o.(*rbacv1.ClusterRoleBinding)) })
}

// RoleBindings implements auth.Roles.
func (l *Lookup) RoleBindings(visit func(*rbacv1.RoleBinding) bool) {
	l.Each(rbacResource("rolebindings"), "", func(o kind.Object) bool { return visit(o.(*rbacv1.RoleBinding)) })
}

// ClusterRole implements auth.Roles.
func (l *Lookup) ClusterRole(name string) (*rbacv1.ClusterRole, bool) {
	r, ok := l.One(rbacResource("clusterroles"), "", name).(*rbacv1.ClusterRole)
	return r, ok
}

// Role implements auth.Roles.
func (l *Lookup) Role(namespace, name string) (*rbacv1.Role, bool) {
	r, ok := l.One(rbacResource("roles"), namespace, name).(*rbacv1.Role)
	return r, ok
}

// Live tells whether what a token is bound to still exists.
func (l *Lookup) Live(b auth.Bound) error {
	core := func(resource string) schema.GroupVersionResource {
		return corev1.SchemeGroupVersion.WithResource(resource)
	}
	sa, ok := l.One(core("serviceaccounts"), b.Namespace, b.ServiceAccount.Name).(*corev1.ServiceAccount)
	if !ok || sa.UID != b.ServiceAccount.UID {
		return errors.New("service account does not exist any more")
	}
	if b.Pod != nil {
		if pod, ok := l.One(core("pods"), b.Namespace, b.Pod.Name).(*corev1.Pod); !ok || pod.UID != b.Pod.UID {
			return errors.New("pod does not exist any more")
		}
	}
	if b.Secret != nil {
		if s, ok := l.One(core("secrets"), b.Namespace, b.Secret.Name).(*corev1.Secret); !ok || s.UID != b.Secret.UID {
			return errors.New("secret does not exist any more")
		}
	}
	if b.Node != nil && b.Node.UID != "" && b.Pod == nil {
		if n, ok := l.One(core("nodes"), "", b.Node.Name).(*corev1.Node); !ok || n.UID != b.Node.UID {
			return errors.New("node does not exist any more")
		}
	}
	return nil
}
