package registry

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/mergepatch"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/codec"
	"knarr.dev/knarr/apiserver/watchcache"
)

// Patch is a change in one of the API's formats.
type Patch struct {
	Type types.PatchType
	Data []byte
	// Validation is the request's fieldValidation: Strict, Warn or Ignore.
	Validation string
}

// maxPatchOperations bounds a JSON patch, as Kubernetes does.
const maxPatchOperations = 10000

// Patch changes an object; server-side apply creates it if absent.
func (r *Registry) Patch(ctx context.Context, q Request, p Patch) (it *watchcache.Item, created bool, err error) {
	q.patched = true
	if p.Type == types.ApplyYAMLPatchType {
		return r.applyPatch(ctx, q, p)
	}
	if q.Force {
		return nil, false, invalidOptions("force", q.Force, "may not be specified for non-apply patch")
	}
	it, err = r.modifyItem(ctx, &q, func(old *watchcache.Item) (kind.Object, error) {
		return r.patched(&q, old, p)
	})
	return it, false, err
}

func invalidOptions(name string, value any, msg string) error {
	return apierrors.NewInvalid(metav1.SchemeGroupVersion.WithKind("PatchOptions").GroupKind(), "", field.ErrorList{
		field.Forbidden(field.NewPath(name), msg)})
}

// patched computes the result of a JSON, merge or strategic merge patch.
func (r *Registry) patched(q *Request, it *watchcache.Item, p Patch) (kind.Object, error) {
	old := it.Object
	obj, err := patchedObject(q, it, p)
	if err != nil {
		return nil, err
	}
	if obj.GetName() != old.GetName() {
		return nil, nameMismatch(obj.GetName(), old.GetName())
	}
	if obj.GetNamespace() != old.GetNamespace() {
		return nil, apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
	}
	if obj.GetResourceVersion() == old.GetResourceVersion() {
		obj.SetResourceVersion("") // the patch did not ask for a condition: races are tried again
	}
	return q.Resource.toHub(obj)
}

// patchedObject is the object with the patch applied, in the request's version.
func patchedObject(q *Request, it *watchcache.Item, p Patch) (kind.Object, error) {
	if p.Type == types.MergePatchType && q.Resource.Custom != nil {
		return mergeCustom(q, it.Object, p)
	}
	if p.Type == types.MergePatchType && p.Validation != metav1.FieldValidationIgnore && !q.Resource.IsView() {
		if obj, ok := mergePlain(q, it.Object, p.Data); ok {
			return obj, nil
		}
	}
	return patchedByJSON(q, it, p)
}

func patchedByJSON(q *Request, it *watchcache.Item, p Patch) (kind.Object, error) {
	view, err := q.Resource.View(it.Object)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	var before []byte
	if q.Resource.IsView() {
		before, err = watchcache.EncodeJSON(view)
	} else {
		before, err = it.JSON()
	}
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	after, err := patchJSON(before, p, view)
	if err != nil {
		return nil, err
	}
	return decodePatched(q, after, p.Validation)
}

func patchJSON(before []byte, p Patch, sample kind.Object) ([]byte, error) {
	switch p.Type {
	case types.JSONPatchType:
		patch, err := jsonpatch.DecodePatch(p.Data)
		if err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
		if len(patch) > maxPatchOperations {
			return nil, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("The allowed maximum operations in a JSON patch is %d, got %d", maxPatchOperations, len(patch)))
		}
		after, err := ApplyJSON(patch, before)
		if err != nil {
			return nil, unprocessable(err)
		}
		return after, nil
	case types.MergePatchType:
		var v map[string]any
		if err := json.Unmarshal(p.Data, &v); err != nil {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
		}
		after, err := jsonpatch.MergePatch(before, p.Data)
		if err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
		return after, nil
	case types.StrategicMergePatchType:
		if _, ok := sample.(*unstructured.Unstructured); ok {
			return nil, apierrors.NewGenericServerResponse(http.StatusUnsupportedMediaType, "", schema.GroupResource{}, "", "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml", 0, false)
		}
		after, err := strategicpatch.StrategicMergePatch(before, p.Data, sample)
		switch {
		case errors.Is(err, mergepatch.ErrBadJSONDoc), errors.Is(err, mergepatch.ErrBadPatchFormatForPrimitiveList), errors.Is(err, mergepatch.ErrBadPatchFormatForRetainKeys), errors.Is(err, mergepatch.ErrBadPatchFormatForSetElementOrderList), errors.Is(err, mergepatch.ErrUnsupportedStrategicMergePatchFormat):
			return nil, apierrors.NewBadRequest(err.Error())
		case err != nil && strings.Contains(err.Error(), "unable to find api field"):
			return nil, apierrors.NewBadRequest(err.Error())
		case err != nil:
			return nil, unprocessable(err)
		}
		return after, nil
	}
	return nil, apierrors.NewBadRequest(fmt.Sprintf("unknown patch type %q", p.Type))
}

// ApplyJSON applies a JSON patch. The library panics on some malformed
// operations, such as a replacement of the whole without a value: an error here.
func ApplyJSON(patch jsonpatch.Patch, before []byte) (after []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("malformed patch operation: %v", p)
		}
	}()
	return patch.Apply(before)
}

func unprocessable(err error) error {
	return apierrors.NewGenericServerResponse(http.StatusUnprocessableEntity, "", schema.GroupResource{}, "", err.Error(), 0, false)
}

func decodePatched(q *Request, after []byte, validation string) (kind.Object, error) {
	if q.Resource.Custom != nil {
		return decodePatchedCustom(q, after, validation)
	}
	gvk := q.Resource.GVK()
	into := q.Resource.New()
	out, actual, err := codec.Decode(after, codec.JSON, gvk, into, validation != metav1.FieldValidationIgnore)
	if runtime.IsStrictDecodingError(err) && out != nil {
		strict, _ := runtime.AsStrictDecodingError(err)
		if validation == metav1.FieldValidationStrict {
			errs := strict.Errors()
			msgs := make([]string, len(errs))
			for i, e := range errs {
				msgs[i] = e.Error()
			}
			return nil, apierrors.NewInvalid(gvk.GroupKind(), q.Name, field.ErrorList{
				field.Invalid(field.NewPath("patch"), "", "strict decoding error: "+strings.Join(msgs, ", "))})
		}
		for _, e := range strict.Errors() {
			q.warn(e.Error())
		}
		err = nil
	}
	if err != nil {
		return nil, apierrors.NewInvalid(gvk.GroupKind(), q.Name, field.ErrorList{
			field.Invalid(field.NewPath("patch"), string(after), err.Error())})
	}
	if actual != nil && *actual != gvk {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("the kind in the data (%s) does not match the expected kind (%s)", actual, gvk))
	}
	return into, nil
}

func (r *Registry) applyPatch(ctx context.Context, q Request, p Patch) (*watchcache.Item, bool, error) {
	if q.FieldManager == "" {
		return nil, false, apierrors.NewInvalid(metav1.SchemeGroupVersion.WithKind("PatchOptions").GroupKind(), "", field.ErrorList{
			field.Required(field.NewPath("fieldManager"), "is required for apply patch")})
	}
	config := &unstructured.Unstructured{Object: map[string]any{}}
	// Most clients send JSON, which is YAML too, but much cheaper to read as what it is.
	media, read := codec.YAML, func(b []byte, into *map[string]any) error {
		j, err := yaml.YAMLToJSON(b) // whole numbers must not become floats
		if err != nil {
			return err
		}
		return utiljson.Unmarshal(j, into)
	}
	if json.Valid(p.Data) {
		media, read = codec.JSON, func(b []byte, into *map[string]any) error { return utiljson.Unmarshal(b, into) }
	}
	if err := read(p.Data, &config.Object); err != nil {
		return nil, false, apierrors.NewBadRequest(fmt.Sprintf("error decoding YAML: %v", err))
	}
	if config.Object == nil {
		config.Object = map[string]any{}
	}
	if config.GetName() == "" {
		config.SetName(q.Name)
	}
	if config.GetName() != q.Name {
		return nil, false, apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s based on URL) was not determinable: the name in the data is %s", q.Name, config.GetName()))
	}
	if q.Resource.Namespaced && config.GetNamespace() == "" {
		config.SetNamespace(q.Namespace)
	}
	if err := checkNamespace(&q, config); err != nil {
		return nil, false, err
	}
	if config.GetManagedFields() != nil {
		return nil, false, apierrors.NewBadRequest("metadata.managedFields must be nil")
	}
	a := &applying{r: r, q: &q, p: p, media: media, config: config}
	if media == codec.JSON {
		a.plain = newPlainApply(&q, p.Data, config.Object)
	}
	if a.plain == nil || q.Resource.Custom != nil { // else a configuration at fault goes the general way later
		if err := a.check(); err != nil {
			return nil, false, err
		}
	}
	q.applied = true
	for {
		if r.absent(ctx, &q) {
			if q.Subresource != "" {
				return nil, false, q.notFound()
			}
			if config.GetUID() != "" {
				return nil, false, apierrors.NewConflict(q.Resource.GroupResource(), q.Name,
					fmt.Errorf("uid mismatch: the provided object specified uid %s, and no existing object was found", config.GetUID()))
			}
			obj, err := a.to(q.Resource.hub.New())
			if err != nil {
				return nil, false, err
			}
			obj.SetResourceVersion("")
			it, err := r.create(ctx, &q, obj)
			if apierrors.IsAlreadyExists(err) {
				continue // somebody else made it meanwhile
			}
			return it, true, err
		}
		it, err := r.modify(ctx, &q, func(old kind.Object) (kind.Object, error) {
			obj, err := a.to(old)
			if err != nil {
				return nil, err
			}
			if config.GetResourceVersion() == "" {
				obj.SetResourceVersion("")
			}
			return obj, nil
		})
		return it, false, err
	}
}

// applying is one server-side apply.
type applying struct {
	r      *Registry
	q      *Request
	p      Patch
	media  string
	config *unstructured.Unstructured
	stored *unstructured.Unstructured // config in the version that is stored; nil: not checked yet
	plain  *plainApply                // nil: only the general way will do
}

// check finds what is wrong with the configuration.
func (a *applying) check() error {
	if a.stored != nil {
		return nil
	}
	typed, err := checkApplied(a.q, a.p, a.media)
	if err != nil {
		return err
	}
	a.stored = a.config
	if a.q.Resource.IsView() && a.q.Resource.Custom == nil {
		a.stored, err = storedConfig(a.q, typed, a.config)
	}
	return err
}

// to returns live, which it does not change, with the configuration applied.
func (a *applying) to(live kind.Object) (kind.Object, error) {
	var short kind.Object
	var key [sha256.Size]byte
	if a.plain != nil {
		var known bool
		if short, key, known = a.plain.apply(a.r, live); known {
			return short, nil
		}
	}
	if err := a.check(); err != nil {
		return nil, err
	}
	live = live.DeepCopyObject().(kind.Object)
	before := owned(live)
	obj, err := a.r.apply(a.q, live, a.stored.DeepCopy())
	if short != nil && err == nil {
		a.plain.learn(a.r, key, before, short, obj)
	}
	return obj, err
}

// storedConfig is an apply configuration of a view in the version that is stored,
// whose fields are the ones that managers own.
func storedConfig(q *Request, typed kind.Object, config *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	typed.SetName(config.GetName())
	typed.SetNamespace(config.GetNamespace())
	hub, err := q.Resource.toHub(typed)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(hub)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	out := &unstructured.Unstructured{Object: content}
	// What the Go type writes though nobody has set it.
	unstructured.RemoveNestedField(content, "metadata", "creationTimestamp")
	unstructured.RemoveNestedField(content, "spec", "template", "metadata", "creationTimestamp")
	if _, set := config.Object["status"]; !set {
		unstructured.RemoveNestedField(content, "status")
	}
	return out, nil
}

func (r *Registry) absent(ctx context.Context, q *Request) bool {
	it, err := r.latest(ctx, q.Resource.hub, q.key(), false)
	return err == nil && it == nil
}

// checkApplied finds unknown fields and wrong types in an apply configuration.
func checkApplied(q *Request, p Patch, media string) (kind.Object, error) {
	if q.Resource.Custom != nil {
		return nil, checkAppliedCustom(q, p)
	}
	into := q.Resource.New()
	_, gvk, err := codec.Decode(p.Data, media, q.Resource.GVK(), into, p.Validation != metav1.FieldValidationIgnore)
	if runtime.IsStrictDecodingError(err) {
		strict, _ := runtime.AsStrictDecodingError(err)
		if p.Validation == metav1.FieldValidationStrict {
			return nil, apierrors.NewBadRequest(strict.Error())
		}
		for _, e := range strict.Errors() {
			q.warn(e.Error())
		}
		err = nil
	}
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	if gvk != nil && *gvk != q.Resource.GVK() {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("the kind in the data (%s) does not match the expected kind (%s)", gvk, q.Resource.GVK()))
	}
	return into, nil
}
