package crd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/uuid"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/webhook"
)

// conversionTimeout bounds one call of a conversion webhook, as in Kubernetes.
const conversionTimeout = 30 * time.Second

// hooked tells whether a webhook converts between the versions.
func (d *definition) hooked() bool {
	c := d.crd.Spec.Conversion
	return c != nil && c.Strategy == apiextensionsv1.WebhookConverter && c.Webhook != nil && c.Webhook.ClientConfig != nil
}

// Convert implements kind.Custom.
func (v *version) Convert(ctx context.Context, objs []kind.Object) ([]kind.Object, error) {
	out := slices.Clone(objs)
	var others []int
	for i, o := range objs {
		if o.GetObjectKind().GroupVersionKind().GroupVersion() != v.gvk.GroupVersion() {
			others = append(others, i)
		}
	}
	if len(others) == 0 {
		return out, nil
	}
	if v.def.hooked() {
		return out, v.callWebhook(ctx, objs, others, out)
	}
	for _, i := range others {
		u, ok := objs[i].(*unstructured.Unstructured)
		if !ok {
			return nil, fmt.Errorf("convert to %s: have a %T", v.gvk, objs[i])
		}
		u = u.DeepCopy()
		u.SetAPIVersion(v.gvk.GroupVersion().String())
		v.shape(u.Object)
		out[i] = u
	}
	return out, nil
}

// review is a ConversionReview of either version: their JSON is the same.
type review struct {
	metav1.TypeMeta `json:",inline"`
	Request         *apiextensionsv1.ConversionRequest `json:"request,omitempty"`
	Response        *struct {
		UID              types.UID         `json:"uid"`
		ConvertedObjects []json.RawMessage `json:"convertedObjects"`
		Result           metav1.Status     `json:"result"`
	} `json:"response,omitempty"`
}

func (v *version) callWebhook(ctx context.Context, objs []kind.Object, which []int, out []kind.Object) error {
	from := objs[which[0]].GetObjectKind().GroupVersionKind()
	fail := func(format string, args ...any) error {
		return &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: http.StatusInternalServerError,
			Reason: metav1.StatusReasonInternalError, Message: fmt.Sprintf("conversion webhook for %v failed: %v", from, fmt.Sprintf(format, args...))}}
	}
	hook := v.def.crd.Spec.Conversion.Webhook
	version := ""
	for _, name := range hook.ConversionReviewVersions {
		if name == "v1" || name == "v1beta1" {
			version = name
			break
		}
	}
	if version == "" {
		return fail("it accepts none of the versions v1 and v1beta1 of ConversionReview")
	}
	req := &apiextensionsv1.ConversionRequest{UID: uuid.NewUUID(), DesiredAPIVersion: v.gvk.GroupVersion().String()}
	for _, i := range which {
		raw, err := json.Marshal(objs[i].(*unstructured.Unstructured).Object)
		if err != nil {
			return fail("%v", err)
		}
		req.Objects = append(req.Objects, rawExtension(raw))
	}
	body, err := json.Marshal(review{TypeMeta: metav1.TypeMeta{Kind: "ConversionReview", APIVersion: apiextensionsv1.GroupName + "/" + version}, Request: req})
	if err != nil {
		return fail("%v", err)
	}
	answer, err := v.def.call.Post(ctx, target(hook.ClientConfig), conversionTimeout, body)
	if err != nil {
		return fail("%v", err)
	}
	var res review
	if err := json.Unmarshal(answer, &res); err != nil {
		return fail("%v", err)
	}
	switch r := res.Response; {
	case r == nil:
		return fail("the answer has no response")
	case r.UID != req.UID:
		return fail("expected response.uid %q, got %q", req.UID, r.UID)
	case r.Result.Status != metav1.StatusSuccess:
		if r.Result.Message == "" {
			return fail("%s", r.Result.Reason)
		}
		return fail("%s", r.Result.Message)
	case len(r.ConvertedObjects) != len(which):
		return fail("expected %d converted objects, got %d", len(which), len(r.ConvertedObjects))
	}
	for n, i := range which {
		u, err := v.converted(res.Response.ConvertedObjects[n], objs[i].(*unstructured.Unstructured))
		if err != nil {
			return &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: http.StatusInternalServerError,
				Reason: metav1.StatusReasonInternalError, Message: fmt.Sprintf("conversion webhook for %v returned invalid converted object at index %d: %v", from, n, err)}}
		}
		out[i] = u
	}
	return nil
}

// converted checks what a webhook made of an object: of metadata it may change
// labels and annotations only.
func (v *version) converted(data []byte, from *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	u := &unstructured.Unstructured{}
	if err := utiljson.Unmarshal(data, &u.Object); err != nil {
		return nil, err
	}
	switch {
	case u.Object == nil:
		return nil, errors.New("it is empty")
	case u.GetAPIVersion() != v.gvk.GroupVersion().String():
		return nil, fmt.Errorf("invalid groupVersion: expected %v, got %q", v.gvk.GroupVersion(), u.GetAPIVersion())
	case u.GetKind() != from.GetKind():
		return nil, fmt.Errorf("invalid kind: expected %q, got %q", from.GetKind(), u.GetKind())
	case u.GetName() != from.GetName():
		return nil, fmt.Errorf("metadata.name: must not be changed from %q to %q", from.GetName(), u.GetName())
	case u.GetNamespace() != from.GetNamespace():
		return nil, fmt.Errorf("metadata.namespace: must not be changed from %q to %q", from.GetNamespace(), u.GetNamespace())
	case u.GetUID() != from.GetUID():
		return nil, fmt.Errorf("metadata.uid: must not be changed from %q to %q", from.GetUID(), u.GetUID())
	}
	labels, annotations := u.GetLabels(), u.GetAnnotations()
	meta, _, err := unstructured.NestedMap(from.Object, "metadata") // a deep copy
	if err != nil {
		return nil, err
	}
	u.Object["metadata"] = meta
	u.SetLabels(labels)
	u.SetAnnotations(annotations)
	v.shape(u.Object)
	return u, nil
}

// target is where a conversion webhook is.
func target(c *apiextensionsv1.WebhookClientConfig) webhook.Target {
	t := webhook.Target{CABundle: c.CABundle}
	if c.URL != nil {
		t.URL = *c.URL
	}
	if s := c.Service; s != nil {
		t.Service = &webhook.Service{Namespace: s.Namespace, Name: s.Name}
		if s.Path != nil {
			t.Service.Path = *s.Path
		}
		if s.Port != nil {
			t.Service.Port = *s.Port
		}
	}
	return t
}
