// Package local is the client.Interface of components that run in the API
// server's own process: it calls the registry directly. Authentication is given
// (the component's identity); authorization, defaults, admission and validation
// run as for everybody; nothing is serialised, and reads hand out the server's
// own objects.
package local

import (
	"context"
	"errors"
	"fmt"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"knarr.dev/knarr/apiserver"
	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/apiserver/registry"
	"knarr.dev/knarr/apiserver/watchcache"
	"knarr.dev/knarr/client"
)

// Server is what all local clients share.
type Server struct {
	Registry *registry.Registry
	Authz    *auth.Chain
	Tokens   *auth.Tokens
	Now      func() time.Time
	// Extensions, if set, reaches what extension servers serve.
	Extensions *Extensions

	feeds feeds
}

// Client acts as one component.
type Client struct {
	s    *Server
	user *authenticationv1.UserInfo
}

var _ client.Interface = (*Client)(nil)

// As returns a client with a component's identity.
func (s *Server) As(user *authenticationv1.UserInfo) *Client { return &Client{s: s, user: user} }

// request checks that the component may do verb and names the object.
func (c *Client) request(verb string, k client.Key) (registry.Request, error) {
	res := c.s.Registry.Resource(k.Resource)
	if res == nil {
		return registry.Request{}, apierrors.NewNotFound(k.Resource.GroupResource(), k.Name)
	}
	a := &auth.Action{User: c.user, Verb: verb, Group: k.Resource.Group, Version: k.Resource.Version,
		Resource: k.Resource.Resource, Subresource: k.Subresource, Namespace: k.Namespace, Name: k.Name}
	if !c.s.Authz.Allowed(a) {
		return registry.Request{}, apierrors.NewForbidden(k.Resource.GroupResource(), k.Name, errors.New(a.Forbidden()))
	}
	q := registry.Request{User: c.user, Resource: res, Name: k.Name, Subresource: k.Subresource}
	if res.Namespaced {
		q.Namespace = k.Namespace
	}
	return q, nil
}

func object(it *watchcache.Item, err error) (client.Object, error) {
	if err != nil {
		return nil, err
	}
	return it.Object, nil
}

// Get implements client.Interface.
func (c *Client) Get(ctx context.Context, k client.Key) (client.Object, error) {
	if f := c.far(k.Resource); f != nil {
		return f.Get(ctx, k)
	}
	q, err := c.request("get", k)
	if err != nil {
		return nil, err
	}
	return object(c.s.Registry.Get(ctx, q, ""))
}

// Create implements client.Interface.
func (c *Client) Create(ctx context.Context, k client.Key, obj client.Object) (client.Object, error) {
	if f := c.far(k.Resource); f != nil {
		return f.Create(ctx, k, obj)
	}
	if review, ok := obj.(*authorizationv1.SubjectAccessReview); ok {
		return c.review(ctx, k, review)
	}
	q, err := c.request("create", k)
	if err != nil {
		return nil, err
	}
	switch o := obj.(type) {
	case *corev1.Binding:
		return o, c.s.Registry.Bind(ctx, q, o)
	case *policyv1.Eviction:
		return o, c.s.Registry.Evict(ctx, q, o)
	case *authenticationv1.TokenRequest:
		it, err := c.s.Registry.Get(ctx, q, "")
		if err != nil {
			return nil, err
		}
		return o, apiserver.IssueToken(c.s.Registry, c.s.Tokens, it.Object.(*corev1.ServiceAccount), o, c.s.Now())
	}
	if k.Subresource != "" {
		return nil, apierrors.NewMethodNotSupported(k.Resource.GroupResource(), "create "+k.Subresource)
	}
	if q.Namespace == "" && q.Resource.Namespaced {
		q.Namespace = obj.GetNamespace()
	}
	return object(c.s.Registry.Create(ctx, q, obj))
}

// review answers what a user may do.
func (c *Client) review(ctx context.Context, k client.Key, r *authorizationv1.SubjectAccessReview) (client.Object, error) {
	a := &auth.Action{User: c.user, Verb: "create", Group: k.Resource.Group, Version: k.Resource.Version, Resource: k.Resource.Resource}
	if !c.s.Authz.Allowed(a) {
		return nil, apierrors.NewForbidden(k.Resource.GroupResource(), "", errors.New(a.Forbidden()))
	}
	out := r.DeepCopy()
	out.Status = apiserver.AnswerReview(ctx, c.s.Authz, &out.Spec)
	return out, nil
}

// Update implements client.Interface.
func (c *Client) Update(ctx context.Context, k client.Key, obj client.Object) (client.Object, error) {
	if f := c.far(k.Resource); f != nil {
		return f.Update(ctx, k, obj)
	}
	q, err := c.request("update", k)
	if err != nil {
		return nil, err
	}
	if k.Subresource == "finalize" {
		ns, ok := obj.(*corev1.Namespace)
		if !ok {
			return nil, fmt.Errorf("update %s: want a Namespace, have a %T", k, obj)
		}
		return object(c.s.Registry.Finalize(ctx, q, ns))
	}
	it, _, err := c.s.Registry.Update(ctx, q, obj)
	return object(it, err)
}

// Patch implements client.Interface.
func (c *Client) Patch(ctx context.Context, k client.Key, p client.Patch) (client.Object, error) {
	if f := c.far(k.Resource); f != nil {
		return f.Patch(ctx, k, p)
	}
	q, err := c.request("patch", k)
	if err != nil {
		return nil, err
	}
	if p.Type == types.ApplyPatchType {
		q.FieldManager, q.Force = p.FieldManager, p.Force
	}
	it, _, err := c.s.Registry.Patch(ctx, q, registry.Patch{Type: p.Type, Data: p.Data, Validation: metav1.FieldValidationIgnore})
	return object(it, err)
}

// Delete implements client.Interface.
func (c *Client) Delete(ctx context.Context, k client.Key, opts metav1.DeleteOptions) error {
	if f := c.far(k.Resource); f != nil {
		return f.Delete(ctx, k, opts)
	}
	q, err := c.request("delete", k)
	if err != nil {
		return err
	}
	_, _, err = c.s.Registry.Delete(ctx, q, opts)
	return err
}

// Resources implements client.Interface.
func (c *Client) Resources(context.Context) ([]client.ResourceInfo, error) {
	var out []client.ResourceInfo
	for _, res := range c.s.Registry.Resources() {
		if !res.Primary {
			continue
		}
		verbs := res.Verbs
		if verbs == nil {
			verbs = []string{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}
		}
		out = append(out, client.ResourceInfo{Resource: res.GVR(), Kind: res.Kind.Kind, Namespaced: res.Namespaced, Verbs: verbs, StorageVersionHash: res.StorageVersionHash()})
	}
	if c.s.Extensions == nil {
		return out, nil
	}
	more, err := c.s.Extensions.resources()
	return append(out, more...), err
}
