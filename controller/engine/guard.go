package engine

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/client"
)

// Write declares a resource that a controller changes.
type Write struct {
	// Resource is written; its zero value means every resource.
	Resource client.Resource
	// Subresource narrows the declaration to a subresource; empty: the object.
	Subresource string
	// Verbs are create, update, patch and delete.
	Verbs []string
}

func (w Write) name() string {
	n := w.Resource.Resource
	if n == "" {
		n = "*"
	}
	if w.Subresource != "" {
		n += "/" + w.Subresource
	}
	return n
}

// guard refuses writes that the controller has not declared.
type guard struct {
	client.Interface
	ctl *Controller
}

func (g guard) check(verb string, k client.Key) error {
	for _, w := range g.ctl.Writes {
		if (w.Resource == (client.Resource{}) || w.Resource == k.Resource) && w.Subresource == k.Subresource && slices.Contains(w.Verbs, verb) {
			return nil
		}
	}
	return fmt.Errorf("controller %s has not declared that it may %s %s: add it to its Writes", g.ctl.Name, verb, k)
}

func (g guard) Create(ctx context.Context, k client.Key, obj client.Object) (client.Object, error) {
	if err := g.check("create", k); err != nil {
		return nil, err
	}
	return g.Interface.Create(ctx, k, obj)
}

func (g guard) Update(ctx context.Context, k client.Key, obj client.Object) (client.Object, error) {
	if err := g.check("update", k); err != nil {
		return nil, err
	}
	return g.Interface.Update(ctx, k, obj)
}

func (g guard) Patch(ctx context.Context, k client.Key, p client.Patch) (client.Object, error) {
	if err := g.check("patch", k); err != nil {
		return nil, err
	}
	return g.Interface.Patch(ctx, k, p)
}

func (g guard) Delete(ctx context.Context, k client.Key, opts metav1.DeleteOptions) error {
	if err := g.check("delete", k); err != nil {
		return err
	}
	return g.Interface.Delete(ctx, k, opts)
}

// Rules are the permissions that a controller needs, from its declarations.
func Rules(c Controller) []rbacv1.PolicyRule {
	var out []rbacv1.PolicyRule
	add := func(r client.Resource, name string, verbs ...string) {
		group := r.Group
		if r == (client.Resource{}) {
			group = "*"
		}
		out = append(out, rbacv1.PolicyRule{APIGroups: []string{group}, Resources: []string{name}, Verbs: verbs})
	}
	for _, w := range c.Watches {
		if w.All {
			add(client.Resource{}, "*", "get", "list", "watch")
		} else {
			add(w.Resource, w.Resource.Resource, "get", "list", "watch")
		}
	}
	for _, w := range c.Writes {
		add(w.Resource, w.name(), w.Verbs...)
	}
	return append(out, rbacv1.PolicyRule{APIGroups: []string{"", "events.k8s.io"}, Resources: []string{"events"}, Verbs: []string{"create", "patch", "update"}})
}

// Graph prints, a line each, what every controller reads and writes.
func Graph(controllers []Controller) string {
	var b strings.Builder
	for _, c := range controllers {
		var reads, writes []string
		for _, w := range c.Watches {
			if w.All {
				reads = append(reads, "*")
			} else {
				reads = append(reads, w.Resource.Resource)
			}
		}
		for _, w := range c.Writes {
			writes = append(writes, w.name()+"("+strings.Join(w.Verbs, ",")+")")
		}
		sort.Strings(reads)
		fmt.Fprintf(&b, "%s: %s -> %s\n", c.Name, strings.Join(slices.Compact(reads), " "), strings.Join(writes, " "))
	}
	return b.String()
}
