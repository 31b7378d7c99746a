package registry

import (
	"context"

	authenticationv1 "k8s.io/api/authentication/v1"

	"knarr.dev/knarr/api/kind"
)

// Operation is what a write does.
type Operation string

// The operations that admission sees.
const (
	Create  Operation = "CREATE"
	Update  Operation = "UPDATE"
	Delete  Operation = "DELETE"
	Connect Operation = "CONNECT"
)

// Attributes describe a write to admission.
type Attributes struct {
	Operation   Operation
	Resource    *Resource
	Subresource string
	Namespace   string
	Name        string
	Object      kind.Object // nil for Delete
	Old         kind.Object // nil for Create
	User        *authenticationv1.UserInfo
	DryRun      bool
	Warn        func(string)
}

// Admission is one step of the ordered list that each write passes. Mutate may
// change Object; Validate may only refuse. Either may be nil. Errors are API
// errors (Forbidden, Invalid).
type Admission struct {
	Name     string
	Mutate   func(context.Context, *Attributes) error
	Validate func(context.Context, *Attributes) error
}

func (r *Registry) attributes(q *Request, op Operation, obj, old kind.Object) *Attributes {
	return &Attributes{
		Operation: op, Resource: q.Resource.hub, Subresource: q.Subresource,
		Namespace: q.Namespace, Name: q.Name, Object: obj, Old: old, User: q.User, DryRun: q.DryRun, Warn: q.warn,
	}
}

func (r *Registry) mutate(ctx context.Context, a *Attributes) error {
	for _, step := range r.cfg.Admit {
		if step.Mutate != nil {
			if err := step.Mutate(ctx, a); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *Registry) validate(ctx context.Context, a *Attributes) error {
	for _, step := range r.cfg.Admit {
		if step.Validate != nil {
			if err := step.Validate(ctx, a); err != nil {
				return err
			}
		}
	}
	return nil
}
