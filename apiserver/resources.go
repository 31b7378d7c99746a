package apiserver

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"unicode"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/codec"
	"knarr.dev/knarr/apiserver/registry"
)

// maxBody is the largest request body in bytes, as in Kubernetes.
const maxBody = 3 << 20

// serveResource answers a request for a resource.
func (s *Server) serveResource(w http.ResponseWriter, r *http.Request, info *requestInfo) {
	if s.serveReview(w, r, info) || s.serveVirtual(w, r, info) || s.serveUsage(w, r, info) {
		return
	}
	gvr := schema.GroupVersionResource{Group: info.Group, Version: info.Version, Resource: info.Resource}
	res := s.reg.Resource(gvr)
	if res == nil {
		s.noResource(w, r, gvr.GroupVersion())
		return
	}
	info.known = true
	if !s.scoped(w, r, res, info) {
		return
	}
	if res.Deprecated != "" {
		warn(w, res.Deprecated)
	}
	q := registry.Request{
		User: userFrom(r.Context()), Resource: res, Subresource: info.Subresource,
		Warn: func(text string) { warn(w, text) },
	}
	if t := trailOf(w); t != nil {
		q.Annotate = t.Annotate
	}
	if !info.selected {
		q.Name = info.Name
	}
	if res.Namespaced {
		q.Namespace = info.Namespace
	}
	if err := writeOptions(r, &q, info.Verb); err != nil {
		writeError(w, r, err)
		return
	}
	if info.Subresource == "status" && res.HasStatus || info.Subresource != "" && res.Part(info.Subresource) != nil {
		switch info.Verb {
		case "get", "update", "patch":
		default:
			methodNotAllowed(w, r)
			return
		}
	} else if info.Subresource != "" {
		s.serveSubresource(w, r, info, q)
		return
	}
	s.serveVerb(w, r, info.Verb, q)
}

// scoped checks that the path fits the kind's scope; if not it has answered.
func (s *Server) scoped(w http.ResponseWriter, r *http.Request, res *registry.Resource, info *requestInfo) bool {
	inNamespace := info.Namespace != "" && (info.Resource != "namespaces" || info.Group != "")
	switch {
	case !res.Namespaced && inNamespace, res.Namespaced && !inNamespace && info.Name != "" && !info.selected:
		notServed(w, r)
	case res.Namespaced && !inNamespace && info.Verb != "list" && info.Verb != "watch":
		methodNotAllowed(w, r)
	case info.Name != "" && !info.selected && info.Verb == "create" && info.Subresource == "":
		methodNotAllowed(w, r)
	case info.Name == "" && (info.Verb == "update" || info.Verb == "patch"):
		methodNotAllowed(w, r)
	default:
		return true
	}
	return false
}

// notFound answers for a path below which nothing is served.
func (s *Server) notFound(w http.ResponseWriter, r *http.Request) {
	writeBody(w, r, http.StatusNotFound, "text/plain; charset=utf-8", []byte("404 page not found\n"))
}

// noResource answers for a resource that is not served: a Status where the group
// and version are, as Kubernetes does.
func (s *Server) noResource(w http.ResponseWriter, r *http.Request, gv schema.GroupVersion) {
	if _, ok := s.discovery().versions[gv]; ok {
		notServed(w, r)
		return
	}
	s.notFound(w, r)
}

func notServed(w http.ResponseWriter, r *http.Request) {
	writeError(w, r, apierrors.NewGenericServerResponse(http.StatusNotFound, "", noResource, "", "", 0, false))
}

func methodNotAllowed(w http.ResponseWriter, r *http.Request) {
	writeError(w, r, apierrors.NewGenericServerResponse(http.StatusMethodNotAllowed, "", noResource, "", "", 0, false))
}

func (s *Server) serveVerb(w http.ResponseWriter, r *http.Request, verb string, q registry.Request) {
	if v := q.Resource.Verbs; v != nil && q.Subresource == "" && !contains(v, verb) {
		methodNotAllowed(w, r)
		return
	}
	switch verb {
	case "get":
		s.get(w, r, q)
	case "list", "watch":
		o, err := listOptions(r)
		if err != nil {
			writeError(w, r, err)
			return
		}
		if verb == "watch" {
			s.serveWatch(w, r, q, o)
			return
		}
		s.list(w, r, q, o)
	case "create":
		s.create(w, r, q)
	case "update":
		s.update(w, r, q)
	case "patch":
		s.patch(w, r, q)
	case "delete":
		s.delete(w, r, q)
	case "deletecollection":
		s.deleteCollection(w, r, q)
	default:
		methodNotAllowed(w, r)
	}
}

func contains(list []string, v string) bool {
	for _, x := range list {
		if x == v {
			return true
		}
	}
	return false
}

// warn adds a Warning header.
func warn(w http.ResponseWriter, text string) {
	w.Header().Add("Warning", fmt.Sprintf("299 - %q", text))
}

// writeOptions reads dryRun, fieldManager and force.
func writeOptions(r *http.Request, q *registry.Request, verb string) error {
	query := r.URL.Query()
	for _, v := range query["dryRun"] {
		if v != metav1.DryRunAll {
			return apierrors.NewInvalid(metav1.SchemeGroupVersion.WithKind(optionsKind(verb)).GroupKind(), "", field.ErrorList{
				field.NotSupported(field.NewPath("dryRun"), v, []string{metav1.DryRunAll})})
		}
		q.DryRun = true
	}
	q.Force = isTrue(query.Get("force"))
	q.FieldManager = query.Get("fieldManager")
	if len(q.FieldManager) > 128 {
		return apierrors.NewInvalid(metav1.SchemeGroupVersion.WithKind(optionsKind(verb)).GroupKind(), "", field.ErrorList{
			field.TooLong(field.NewPath("fieldManager"), q.FieldManager, 128)})
	}
	if q.FieldManager == "" && !strings.HasPrefix(r.Header.Get("Content-Type"), "application/apply-patch+") {
		q.FieldManager = managerOf(r.UserAgent())
	}
	return nil
}

func optionsKind(verb string) string {
	switch verb {
	case "create":
		return "CreateOptions"
	case "patch":
		return "PatchOptions"
	case "delete", "deletecollection":
		return "DeleteOptions"
	}
	return "UpdateOptions"
}

// managerOf is the field manager of a client that names none: its program's name.
func managerOf(userAgent string) string {
	m, _, _ := strings.Cut(userAgent, "/")
	m = strings.Map(func(c rune) rune {
		if unicode.IsPrint(c) {
			return c
		}
		return -1
	}, m)
	if m == "" {
		m = "unknown"
	}
	return m[:min(len(m), 128)]
}

func listOptions(r *http.Request) (registry.ListOptions, error) {
	query := r.URL.Query()
	o := registry.ListOptions{
		ResourceVersion:      query.Get("resourceVersion"),
		ResourceVersionMatch: metav1.ResourceVersionMatch(query.Get("resourceVersionMatch")),
		Continue:             query.Get("continue"),
	}
	var err error
	if v := query.Get("labelSelector"); v != "" {
		if o.Labels, err = labels.Parse(v); err != nil {
			return o, apierrors.NewBadRequest(err.Error())
		}
	}
	if v := query.Get("fieldSelector"); v != "" {
		if o.Fields, err = fields.ParseSelector(v); err != nil {
			return o, apierrors.NewBadRequest(err.Error())
		}
	}
	if v := query.Get("limit"); v != "" {
		if o.Limit, err = strconv.ParseInt(v, 10, 64); err != nil || o.Limit < 0 {
			return o, apierrors.NewBadRequest(fmt.Sprintf("limit: %q is not a non-negative number", v))
		}
	}
	return o, checkListOptions(&o, query)
}

// checkListOptions refuses combinations that have no meaning.
func checkListOptions(o *registry.ListOptions, query url.Values) error {
	in := internalversion.ListOptions{
		Watch: isTrue(query.Get("watch")), ResourceVersion: o.ResourceVersion, ResourceVersionMatch: o.ResourceVersionMatch,
		Limit: o.Limit, Continue: o.Continue,
	}
	if query.Has("sendInitialEvents") {
		v := isTrue(query.Get("sendInitialEvents"))
		in.SendInitialEvents = &v
	}
	if errs := validation.ValidateListOptions(&in, true); len(errs) > 0 {
		return apierrors.NewInvalid(schema.GroupKind{Group: "meta.k8s.io", Kind: "ListOptions"}, "", errs)
	}
	return nil
}

func (s *Server) get(w http.ResponseWriter, r *http.Request, q registry.Request) {
	f, err := negotiate(r, anyTransformation)
	if err == nil {
		it, e := s.reg.Get(r.Context(), q, r.URL.Query().Get("resourceVersion"))
		if err = e; err == nil {
			s.writeItem(w, r, http.StatusOK, f, q.Resource, it)
			return
		}
	}
	writeError(w, r, err)
}

func (s *Server) list(w http.ResponseWriter, r *http.Request, q registry.Request, o registry.ListOptions) {
	f, err := negotiate(r, anyTransformation)
	if err == nil {
		l, e := s.reg.List(r.Context(), q, o)
		if err = e; err == nil {
			s.writeList(w, r, f, q.Resource, l)
			return
		}
	}
	writeError(w, r, err)
}

// promised is up to how many bytes a body's announced length is believed.
const promised = 64 << 10

// readBody reads the whole body, in one piece if the client said that it is small.
func readBody(w http.ResponseWriter, r *http.Request) (data []byte, err error) {
	if 0 < r.ContentLength && r.ContentLength <= promised {
		data = make([]byte, r.ContentLength)
		_, err = io.ReadFull(r.Body, data)
	} else {
		data, err = io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	}
	if err != nil {
		if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
			return nil, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("limit is %d", maxBody))
		}
		return nil, apierrors.NewBadRequest(fmt.Sprintf("read the request body: %v", err))
	}
	return data, nil
}

// body reads a request's body and its format.
func body(w http.ResponseWriter, r *http.Request) (data []byte, media string, err error) {
	if data, err = readBody(w, r); err != nil {
		return nil, "", err
	}
	media, ok := codec.MediaType(r.Header.Get("Content-Type"))
	if !ok {
		return nil, "", apierrors.NewGenericServerResponse(http.StatusUnsupportedMediaType, "", noResource, "",
			"the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf, application/cbor", 0, false)
	}
	return data, media, nil
}

// fieldValidation is how a request wants unknown fields to be treated.
func fieldValidation(r *http.Request) (string, error) {
	switch v := r.URL.Query().Get("fieldValidation"); v {
	case "":
		return metav1.FieldValidationWarn, nil
	case metav1.FieldValidationStrict, metav1.FieldValidationWarn, metav1.FieldValidationIgnore:
		return v, nil
	default:
		return "", apierrors.NewInvalid(metav1.SchemeGroupVersion.WithKind("CreateOptions").GroupKind(), "", field.ErrorList{
			field.NotSupported(field.NewPath("fieldValidation"), v, []string{"", metav1.FieldValidationIgnore, metav1.FieldValidationStrict, metav1.FieldValidationWarn})})
	}
}

// decode reads the body as an object of gvk into into.
func decode(w http.ResponseWriter, r *http.Request, gvk schema.GroupVersionKind, into runtime.Object) error {
	_, actual, err := decodeKind(w, r, gvk, into)
	if err == nil && actual != nil && actual.GroupVersion() != gvk.GroupVersion() {
		return apierrors.NewBadRequest(fmt.Sprintf("the API version in the data (%s) does not match the expected API version (%s)", actual.GroupVersion(), gvk.GroupVersion()))
	}
	return err
}

// decodeKind reads the body as an object of gvk's kind: into if it is of gvk's
// version, else another object.
func decodeKind(w http.ResponseWriter, r *http.Request, gvk schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	data, media, err := body(w, r)
	if err != nil {
		return nil, nil, err
	}
	mode, err := fieldValidation(r)
	if err != nil {
		return nil, nil, err
	}
	if len(data) == 0 && r.Method == http.MethodDelete {
		return into, nil, nil
	}
	out, actual, err := codec.Decode(data, media, gvk, into, mode != metav1.FieldValidationIgnore)
	if runtime.IsStrictDecodingError(err) && out != nil {
		strict, _ := runtime.AsStrictDecodingError(err)
		if mode == metav1.FieldValidationStrict {
			return nil, nil, decodeError(gvk, actual, data, strict)
		}
		for _, e := range strict.Errors() {
			warn(w, e.Error())
		}
		err = nil
	}
	if err != nil {
		return nil, nil, decodeError(gvk, actual, data, err)
	}
	if actual != nil && actual.Kind != gvk.Kind {
		return nil, nil, decodeError(gvk, actual, data, fmt.Errorf("converting (%s.%s) to (%s.%s): unknown conversion", actual.Version, actual.Kind, gvk.Version, gvk.Kind))
	}
	return out, actual, nil
}

// decodeError says what the body claims to be, or else how it begins.
func decodeError(want schema.GroupVersionKind, actual *schema.GroupVersionKind, body []byte, err error) error {
	if actual != nil && actual.Kind != "" {
		return apierrors.NewBadRequest(fmt.Sprintf("%s in version %q cannot be handled as a %s: %v", actual.Kind, actual.Version, want.Kind, err))
	}
	const shown = 30
	begin := body[:min(len(body), shown)]
	text := string(begin)
	if len(body) > 0 && body[0] != '{' {
		text = hex.EncodeToString(begin)
	}
	if len(body) == 0 {
		text = "<empty>"
	} else if len(body) > shown {
		text += " ..."
	}
	return apierrors.NewBadRequest(fmt.Sprintf("the object provided is unrecognized (must be of type %s): %v (%s)", want.Kind, err, text))
}

func (s *Server) decodeObject(w http.ResponseWriter, r *http.Request, q *registry.Request) (kind.Object, error) {
	if q.Resource.Custom != nil {
		return decodeCustom(w, r, q)
	}
	obj := q.Resource.New()
	if err := decode(w, r, q.Resource.GVK(), obj); err != nil {
		return nil, err
	}
	return obj, nil
}

func (s *Server) create(w http.ResponseWriter, r *http.Request, q registry.Request) {
	f, err := negotiate(r, anyTransformation)
	if err == nil {
		var obj kind.Object
		if obj, err = s.decodeObject(w, r, &q); err == nil {
			it, e := s.reg.Create(r.Context(), q, obj)
			if err = e; err == nil {
				s.writeItem(w, r, http.StatusCreated, f, q.Resource, it.Apart())
				return
			}
		}
	}
	writeError(w, r, err)
}

func (s *Server) update(w http.ResponseWriter, r *http.Request, q registry.Request) {
	f, err := negotiate(r, anyTransformation)
	if err == nil {
		var obj kind.Object
		if obj, err = s.decodeObject(w, r, &q); err == nil {
			it, created, e := s.reg.Update(r.Context(), q, obj)
			if err = e; err == nil {
				s.writeItem(w, r, codeFor(created), f, q.Resource, it.Apart())
				return
			}
		}
	}
	writeError(w, r, err)
}

func codeFor(created bool) int {
	if created {
		return http.StatusCreated
	}
	return http.StatusOK
}

// patchOf reads a patch request.
func patchOf(w http.ResponseWriter, r *http.Request) (p registry.Patch, err error) {
	media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		media = r.Header.Get("Content-Type")
	}
	p.Type = types.PatchType(media)
	switch p.Type {
	case types.JSONPatchType, types.MergePatchType, types.StrategicMergePatchType, types.ApplyYAMLPatchType, types.ApplyCBORPatchType:
	default:
		return p, apierrors.NewGenericServerResponse(http.StatusUnsupportedMediaType, "", noResource, "",
			"the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml, application/apply-patch+cbor", 0, false)
	}
	if p.Validation, err = fieldValidation(r); err != nil {
		return p, err
	}
	if p.Data, err = readBody(w, r); err != nil {
		return p, err
	}
	if p.Type == types.ApplyCBORPatchType { // from here on, as if it had been JSON
		if p.Data, err = codec.CBORToJSON(p.Data); err != nil {
			return p, apierrors.NewBadRequest(fmt.Sprintf("error decoding CBOR: %v", err))
		}
		p.Type = types.ApplyYAMLPatchType
	}
	return p, nil
}

func (s *Server) patch(w http.ResponseWriter, r *http.Request, q registry.Request) {
	f, err := negotiate(r, anyTransformation)
	if err == nil {
		var p registry.Patch
		if p, err = patchOf(w, r); err == nil {
			if p.Type == types.ApplyYAMLPatchType {
				q.FieldManager = r.URL.Query().Get("fieldManager")
			}
			it, created, e := s.reg.Patch(r.Context(), q, p)
			if err = e; err == nil {
				s.writeItem(w, r, codeFor(created), f, q.Resource, it.Apart())
				return
			}
		}
	}
	writeError(w, r, err)
}

// deleteOptions reads them from the body, or from the query as old clients send.
func deleteOptions(w http.ResponseWriter, r *http.Request, q *registry.Request) (metav1.DeleteOptions, error) {
	var o metav1.DeleteOptions
	gvk := schema.GroupVersionKind{Group: q.Resource.Group, Version: q.Resource.Version, Kind: "DeleteOptions"}
	bodySent := false
	if r.ContentLength != 0 {
		data, media, err := body(w, r)
		if err != nil {
			return o, err
		}
		if bodySent = len(data) > 0; bodySent {
			if err := codec.DecodeOptions(data, media, gvk, &o); err != nil {
				return o, apierrors.NewBadRequest(fmt.Sprintf("DeleteOptions: %v", err))
			}
		}
	}
	if bodySent {
		return o, dryRunOf(&o, q)
	}
	query := r.URL.Query()
	if v := query.Get("gracePeriodSeconds"); v != "" {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			return o, apierrors.NewBadRequest(fmt.Sprintf("gracePeriodSeconds: %q is not a number", v))
		}
		o.GracePeriodSeconds = &n
	}
	if v := query.Get("propagationPolicy"); v != "" {
		p := metav1.DeletionPropagation(v)
		o.PropagationPolicy = &p
	}
	if v := query.Get("orphanDependents"); v != "" {
		b := isTrue(v)
		o.OrphanDependents = &b
	}
	return o, nil
}

func dryRunOf(o *metav1.DeleteOptions, q *registry.Request) error {
	for _, v := range o.DryRun {
		if v != metav1.DryRunAll {
			return apierrors.NewInvalid(metav1.SchemeGroupVersion.WithKind("DeleteOptions").GroupKind(), "", field.ErrorList{
				field.NotSupported(field.NewPath("dryRun"), v, []string{metav1.DryRunAll})})
		}
		q.DryRun = true
	}
	return nil
}

func (s *Server) delete(w http.ResponseWriter, r *http.Request, q registry.Request) {
	f, err := negotiate(r, anyTransformation)
	if err == nil {
		var o metav1.DeleteOptions
		if o, err = deleteOptions(w, r, &q); err == nil {
			it, gone, e := s.reg.Delete(r.Context(), q, o)
			if err = e; err == nil {
				if !gone || returnsDeleted(q.Resource) {
					s.writeItem(w, r, http.StatusOK, f, q.Resource, it.Apart())
					return
				}
				f.as = ""
				writeObject(w, r, http.StatusOK, f, &metav1.Status{
					TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusSuccess,
					Details: &metav1.StatusDetails{Name: q.Name, Group: q.Resource.Group, Kind: q.Resource.Resource, UID: it.Object.GetUID()},
				})
				return
			}
		}
	}
	writeError(w, r, err)
}

// returnsDeleted tells the kinds whose deletion answers the object as it was last;
// others answer a Status.
func returnsDeleted(res *registry.Resource) bool {
	switch res.Group {
	case "":
		switch res.Kind.Resource {
		case "pods", "services", "serviceaccounts", "podtemplates", "resourcequotas", "persistentvolumes", "persistentvolumeclaims":
			return true
		}
	case "resource.k8s.io":
		return true
	case "storage.k8s.io":
		return res.Kind.Resource != "csistoragecapacities"
	}
	return false
}

func (s *Server) deleteCollection(w http.ResponseWriter, r *http.Request, q registry.Request) {
	f, err := negotiate(r, anyTransformation)
	if err == nil {
		var o metav1.DeleteOptions
		if o, err = deleteOptions(w, r, &q); err == nil {
			var sel registry.ListOptions
			if sel, err = listOptions(r); err == nil {
				l, e := s.reg.DeleteCollection(r.Context(), q, sel, o)
				if err = e; err == nil {
					s.writeList(w, r, f, q.Resource, l)
					return
				}
			}
		}
	}
	writeError(w, r, err)
}
