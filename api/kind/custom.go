package kind

import (
	"context"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/managedfields"
)

// Custom is how the objects of a kind are read whose form is declared while the
// server runs, by a CustomResourceDefinition: they have no Go type.
type Custom interface {
	// Decode reads a request's JSON: unknown fields are dropped, defaults filled.
	// strict asks for the unknown and the repeated fields as faults.
	Decode(data []byte, strict bool) (obj Object, faults []error, err error)
	// Form does to an object what Decode does to what it has read.
	Form(obj Object, strict bool) (faults []error, err error)
	// DecodeStored reads what the store has, which may be of another version.
	DecodeStored(data []byte) (Object, error)
	// Convert returns objects in this kind's version: those that are, themselves,
	// others converted copies. It may call a webhook.
	Convert(ctx context.Context, objs []Object) ([]Object, error)
	// Outdated tells of an object's stored bytes whether they are of another version
	// than objects are stored in now; MayBeOutdated, without a look at them, whether
	// any can be.
	Outdated(data []byte) bool
	MayBeOutdated() bool
	// Refuses tells why no new object may be created now, or nil.
	Refuses() error
}

// Managed is what server-side apply needs to know of a kind.
type Managed struct {
	Types     managedfields.TypeConverter
	Convertor runtime.ObjectConvertor
	Creater   runtime.ObjectCreater
}
