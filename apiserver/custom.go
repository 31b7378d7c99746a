package apiserver

import (
	"errors"
	"fmt"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/codec"
	"knarr.dev/knarr/apiserver/registry"
)

// decodeCustom reads the body as an object of a kind without a Go type.
func decodeCustom(w http.ResponseWriter, r *http.Request, q *registry.Request) (kind.Object, error) {
	data, media, err := body(w, r)
	if err != nil {
		return nil, err
	}
	if media == codec.Protobuf {
		return nil, apierrors.NewGenericServerResponse(http.StatusUnsupportedMediaType, "", noResource, "",
			"the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/cbor", 0, false)
	}
	mode, err := fieldValidation(r)
	if err != nil {
		return nil, err
	}
	strict := mode != metav1.FieldValidationIgnore
	gvk := q.Resource.GVK()
	var faults []error
	if media == codec.YAML {
		if strict {
			if err := yaml.UnmarshalStrict(data, &map[string]any{}); err != nil {
				faults = append(faults, err)
			}
		}
		if data, err = yaml.YAMLToJSON(data); err != nil {
			return nil, decodeError(gvk, nil, data, err)
		}
	}
	if media == codec.CBOR {
		j, err := codec.CBORToJSON(data)
		if err != nil {
			return nil, decodeError(gvk, nil, data, err)
		}
		data = j
	}
	obj, more, err := q.Resource.Custom.Decode(data, strict)
	if err != nil {
		return nil, decodeError(gvk, nil, data, err)
	}
	actual := obj.GetObjectKind().GroupVersionKind()
	if faults = append(faults, more...); len(faults) > 0 && mode == metav1.FieldValidationStrict {
		return nil, decodeError(gvk, &actual, data, runtime.NewStrictDecodingError(faults))
	}
	for _, f := range faults {
		warn(w, f.Error())
	}
	if actual.GroupVersion() != gvk.GroupVersion() {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("the API version in the data (%s) does not match the expected API version (%s)", actual.GroupVersion(), gvk.GroupVersion()))
	}
	if actual.Kind == "" {
		return nil, decodeError(gvk, nil, data, errors.New("Object 'Kind' is missing"))
	}
	return obj, nil
}
