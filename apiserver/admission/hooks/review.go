package hooks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	admissionv1 "k8s.io/api/admission/v1"
	admissionv1beta1 "k8s.io/api/admission/v1beta1"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"

	"knarr.dev/knarr/apiserver/admission/match"
	"knarr.dev/knarr/apiserver/registry"
)

// request is the question to a webhook, in the version of res.
func request(ctx context.Context, a *registry.Attributes, res *registry.Resource) (*admissionv1.AdmissionRequest, error) {
	own, asked := a.Kind(), a.Requested.GVR()
	gvk, gvr := own, res.GVR()
	if a.BodyKind.Empty() {
		gvk = res.GVK()
	}
	dryRun := a.DryRun
	q := &admissionv1.AdmissionRequest{
		UID: uuid.NewUUID(), Kind: metav1.GroupVersionKind(gvk), Resource: metav1.GroupVersionResource(gvr), SubResource: a.Subresource,
		RequestKind: (*metav1.GroupVersionKind)(&own), RequestResource: (*metav1.GroupVersionResource)(&asked), RequestSubResource: a.Subresource,
		Name: a.Name, Namespace: match.NamespaceOf(a), Operation: admissionv1.Operation(a.Operation), DryRun: &dryRun,
	}
	if a.User != nil {
		q.UserInfo = authenticationv1.UserInfo{Username: a.User.Username, UID: a.User.UID, Groups: a.User.Groups, Extra: a.User.Extra}
	}
	var object, old runtime.Object = a.Body, a.OldBody
	if a.BodyKind.Empty() {
		shown, err := res.Show(ctx, a.Resource, a.Object)
		if err != nil {
			return nil, err
		}
		was, err := res.Show(ctx, a.Resource, a.Old)
		if err != nil {
			return nil, err
		}
		object, old = shown, was
	}
	for _, part := range []struct {
		from runtime.Object
		to   *runtime.RawExtension
	}{{object, &q.Object}, {old, &q.OldObject}, {a.Options, &q.Options}} {
		if part.from == nil {
			continue
		}
		b, err := json.Marshal(part.from)
		if err != nil {
			return nil, fmt.Errorf("encode a %T: %w", part.from, err)
		}
		part.to.Raw = b
	}
	return q, nil
}

// encode wraps the question in an AdmissionReview of a version.
func encode(version string, q *admissionv1.AdmissionRequest) ([]byte, error) {
	return json.Marshal(struct {
		metav1.TypeMeta `json:",inline"`
		Request         *admissionv1.AdmissionRequest `json:"request"` // the same in both versions
	}{reviewType(version), q})
}

func reviewType(version string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: admissionv1.GroupName + "/" + version, Kind: "AdmissionReview"}
}

var errNoResponse = errors.New("webhook response was absent")

// decode reads an answer and checks that it is one to the question uid; patches
// tells whether it may change the object.
func decode(version string, uid types.UID, body []byte, patches bool) (*admissionv1.AdmissionResponse, error) {
	var review struct {
		metav1.TypeMeta `json:",inline"`
		Response        *admissionv1.AdmissionResponse `json:"response"`
	}
	expected := reviewType(version)
	want := expected.GroupVersionKind()
	if err := json.Unmarshal(body, &review); err != nil {
		return nil, fmt.Errorf("expected webhook response of %s, got an unreadable one: %w", want, err)
	}
	r := review.Response
	if version == admissionv1beta1.SchemeGroupVersion.Version {
		switch {
		case r == nil:
			return nil, errNoResponse
		case len(r.Patch) > 0 && r.PatchType == nil: // v1beta1 lets it be guessed
			t := admissionv1.PatchTypeJSONPatch
			r.PatchType = &t
		}
		return r, patchOnly(r, patches)
	}
	if review.GroupVersionKind() != want {
		return nil, fmt.Errorf("expected webhook response of %s, got %s", want, review.GroupVersionKind())
	}
	switch {
	case r == nil:
		return nil, errNoResponse
	case r.UID != uid:
		return nil, fmt.Errorf("expected response.uid=%q, got %q", uid, r.UID)
	}
	return r, patchOnly(r, patches)
}

// patchOnly checks that a patch is one, and is allowed.
func patchOnly(r *admissionv1.AdmissionResponse, allowed bool) error {
	switch {
	case !allowed && len(r.Patch) > 0:
		return errors.New("validating webhook may not return response.patch")
	case !allowed && r.PatchType != nil:
		return errors.New("validating webhook may not return response.patchType")
	case len(r.Patch) > 0 && r.PatchType == nil:
		return errors.New("webhook returned response.patch but not response.patchType")
	case len(r.Patch) == 0 && r.PatchType != nil:
		return errors.New("webhook returned response.patchType but not response.patch")
	case r.PatchType != nil && *r.PatchType != admissionv1.PatchTypeJSONPatch:
		return fmt.Errorf("webhook returned invalid response.patchType of %q", *r.PatchType)
	}
	return nil
}

// ask calls a webhook about a request.
func (s *step) ask(ctx context.Context, h *hook, q *admissionv1.AdmissionRequest, patches bool) (*admissionv1.AdmissionResponse, error) {
	if h.version == "" {
		return nil, errors.New("the webhook speaks no version of AdmissionReview that this server knows")
	}
	body, err := encode(h.version, q)
	if err != nil {
		return nil, fmt.Errorf("could not create admission objects: %w", err)
	}
	answer, err := s.Caller.Post(ctx, h.target, h.timeout, body)
	if err != nil {
		return nil, fmt.Errorf("failed to call webhook: %w", err)
	}
	r, err := decode(h.version, q.UID, answer, patches)
	if err != nil {
		return nil, fmt.Errorf("received invalid webhook response: %w", err)
	}
	return r, nil
}
