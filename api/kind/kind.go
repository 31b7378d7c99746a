// Package kind declares what an API kind is: one value of Kind says all that the
// server needs to know about it. Kinds are pure data and pure functions.
package kind

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"reflect"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// Object is any API object.
type Object interface {
	metav1.Object
	runtime.Object
}

// Kind declares one kind in one version. Optional fields may stay zero.
type Kind struct {
	Group, Version, Kind string
	Resource             string // plural, lower case: the path segment
	Singular             string // defaults to the lower-case Kind
	ShortNames           []string
	Categories           []string
	Namespaced           bool

	// New and NewList make empty objects.
	New     func() Object
	NewList func() runtime.Object

	// Storage is the key prefix below /registry/, without slashes at its ends.
	// It defaults to Resource, or Group/Resource for groups with a domain.
	Storage string

	// Verbs that are served; nil means all of them.
	Verbs []string
	// Subresources with generic behaviour.
	HasStatus bool
	Scale     *Scale
	// Others lists special subresources, such as "binding"; their behaviour is
	// the server's.
	Others []Subresource

	// Default fills absent fields, at every write and for stored objects of
	// older servers.
	Default func(Object)
	// PrepareCreate drops what a client may not set (status), before defaulting.
	// Nil: the Status field is cleared if HasStatus.
	PrepareCreate func(Object)
	// PrepareUpdate carries over from old what an update may not change. Nil:
	// status is carried over if HasStatus.
	PrepareUpdate func(obj, old Object)
	// PrepareStatus carries over from old what a status update may not change.
	// Nil: everything but status.
	PrepareStatus func(obj, old Object)
	// PrepareDelete changes an object whose deletion begins, such as by a finalizer.
	PrepareDelete func(Object)
	// Canonicalize may rewrite values after defaulting and before validation.
	Canonicalize func(Object)

	// Validate checks a new object; metadata has been checked already.
	Validate func(Object) field.ErrorList
	// ValidateUpdate checks a change; Validate is not run for updates, call it
	// from here where the kind wants it.
	ValidateUpdate func(obj, old Object) field.ErrorList
	// ValidateStatus checks a change of the status.
	ValidateStatus func(obj, old Object) field.ErrorList
	// Check, if set, is asked instead of the three above: for checks that take
	// time. old is nil for a new object.
	Check func(ctx context.Context, obj, old Object, subresource string) field.ErrorList
	// ValidName checks metadata.name; nil: a DNS subdomain.
	ValidName func(name string, prefix bool) []string

	// NoGeneration: metadata.generation is not kept for this kind.
	NoGeneration bool
	// LateGeneration: metadata.generation is kept from the first change on.
	LateGeneration bool
	// FixedGeneration: metadata.generation is 1 and stays so.
	FixedGeneration bool
	// AllowCreateOnUpdate: PUT of an absent object creates it.
	AllowCreateOnUpdate bool
	// UnconditionalUpdate is whether PUT may omit metadata.resourceVersion; nil means yes.
	RequireResourceVersion bool

	// Fields are the selectable fields beside metadata.name and metadata.namespace.
	// Those of a view are given the stored object; nil: they are the hub's.
	Fields func(Object) fields.Set

	// Columns and Row print the table that kubectl get shows; Row is told the
	// present time, for ages. Nil: Name and Age.
	Columns []metav1.TableColumnDefinition
	Row     func(Object, time.Time) []any

	// Hub, if set, makes this kind a view on the stored kind Hub: objects are
	// converted at the edge and only the hub is stored.
	Hub            schema.GroupVersionKind
	ToHub, FromHub func(Object) (Object, error)
	// ValidateViaView checks a change that is made through this view beside the hub's
	// own check. It is given the stored objects.
	ValidateViaView func(obj, old Object) field.ErrorList
	Deprecated      string // warning sent with each answer; empty: none
	SecretAtRest    bool   // values are sealed in the store

	ListKind string // defaults to Kind + "List"
	// Custom is set for kinds without a Go type.
	Custom Custom
	// Managed says how server-side apply treats the kind; nil: as the types of
	// k8s.io/api say. It is asked once, when first needed.
	Managed func() (Managed, error)
	// Schema returns a new description of the kind for OpenAPI, whose second
	// version can say less; nil: as the Go type says. Metadata is described by its
	// reader.
	Schema func(v2 bool) *spec.Schema
}

// Subresource is a special subresource as discovery shows it.
type Subresource struct {
	Name  string
	GVK   schema.GroupVersionKind // of its body
	Verbs []string

	// Prepare, if set, makes this a way to change a part of the object, as status
	// is: it carries over from old what a write may not change. The body is the
	// whole object.
	Prepare func(obj, old Object)
	// Validate checks such a change.
	Validate func(obj, old Object) field.ErrorList
}

// Scale maps a kind to autoscaling/v1 Scale. Selector may be nil.
type Scale struct {
	Replicas       func(Object) int32
	SetReplicas    func(Object, int32)
	StatusReplicas func(Object) int32
	Selector       func(Object) string
}

// StorageVersionHash is what discovery says of the version in which objects are stored.
func StorageVersionHash(stored schema.GroupVersionKind) string {
	sum := sha256.Sum256([]byte(stored.Group + "/" + stored.Version + "/" + stored.Kind))
	return base64.StdEncoding.EncodeToString(sum[:8])
}

// GVK returns the kind's full name.
func (k *Kind) GVK() schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: k.Group, Version: k.Version, Kind: k.Kind}
}

// GVR returns the name of the kind's collection.
func (k *Kind) GVR() schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: k.Group, Version: k.Version, Resource: k.Resource}
}

// GroupResource returns the collection's name without version, for errors.
func (k *Kind) GroupResource() schema.GroupResource {
	return schema.GroupResource{Group: k.Group, Resource: k.Resource}
}

// Part returns the subresource that changes a part of the object, or nil.
func (k *Kind) Part(name string) *Subresource {
	for i := range k.Others {
		if s := &k.Others[i]; s.Name == name && s.Prepare != nil {
			return s
		}
	}
	return nil
}

// StatusField returns the object's Status field, or the zero Value.
func StatusField(o Object) reflect.Value {
	v := reflect.ValueOf(o)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		return reflect.Value{}
	}
	return v.Elem().FieldByName("Status")
}

// CopyStatus sets dst's status to src's; both are of one type.
func CopyStatus(dst, src Object) {
	d, s := StatusField(dst), StatusField(src)
	if d.IsValid() && s.IsValid() {
		d.Set(s)
	}
}
