package apiserver

import (
	"fmt"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/codec"
	"knarr.dev/knarr/apiserver/registry"
)

// Resources of the core group that are not stored: bindings, which are made of a
// pod, and the states of the control plane's components.
const (
	bindings          = "bindings"
	componentStatuses = "componentstatuses"
)

// virtualResources are they as discovery shows them.
func virtualResources() []metav1.APIResource {
	return []metav1.APIResource{
		{Name: bindings, SingularName: "binding", Namespaced: true, Kind: "Binding", Verbs: metav1.Verbs{"create"}},
		{Name: componentStatuses, SingularName: "componentstatus", Kind: "ComponentStatus", Verbs: metav1.Verbs{"get", "list"}, ShortNames: []string{"cs"}},
	}
}

// virtualKinds are their kinds, in the same order.
var virtualKinds = []*kind.Kind{
	{Version: "v1", Kind: "Binding", Resource: bindings, Namespaced: true, New: func() kind.Object { return &corev1.Binding{} }},
	{Version: "v1", Kind: "ComponentStatus", Resource: componentStatuses, New: func() kind.Object { return &corev1.ComponentStatus{} }, NewList: func() runtime.Object { return &corev1.ComponentStatusList{} }},
}

// serveVirtual answers a request for one of them; false if it is not one.
func (s *Server) serveVirtual(w http.ResponseWriter, r *http.Request, info *requestInfo) bool {
	if info.Group != "" || info.Version != "v1" || info.Subresource != "" {
		return false
	}
	var err error
	switch info.Resource {
	case bindings:
		err = s.createBinding(w, r, info)
	case componentStatuses:
		err = s.componentStatus(w, r, info)
	default:
		return false
	}
	info.known = true
	if err != nil {
		writeError(w, r, err)
	}
	return true
}

var errMethod = apierrors.NewGenericServerResponse(http.StatusMethodNotAllowed, "", noResource, "", "", 0, false)

// createBinding binds the pod that a Binding names: the old form of pods/binding.
func (s *Server) createBinding(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	if info.Verb != "create" || info.Name != "" || info.Namespace == "" {
		return errMethod
	}
	var b corev1.Binding
	if err := decode(w, r, corev1.SchemeGroupVersion.WithKind("Binding"), &b); err != nil {
		return err
	}
	if b.Namespace != "" && b.Namespace != info.Namespace {
		return apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
	}
	pods := s.reg.Resource(schema.GroupVersionResource{Version: "v1", Resource: "pods"})
	q := registry.Request{User: userFrom(r.Context()), Resource: pods, Namespace: info.Namespace, Name: b.Name, Subresource: "binding"}
	if err := writeOptions(r, &q, info.Verb); err != nil {
		return err
	}
	if err := s.reg.Bind(r.Context(), q, &b); err != nil {
		return err
	}
	success(w, r, http.StatusCreated)
	return nil
}

// components are what ComponentStatus tells of. They are parts of this process, or
// it would not answer: the answer says that they are well.
var components = []string{"scheduler", "controller-manager", "etcd-0"}

func (s *Server) componentStatus(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	f, err := negotiate(r, anyTransformation)
	if err != nil {
		return err
	}
	warn(w, "v1 ComponentStatus is deprecated in v1.19+")
	list := &corev1.ComponentStatusList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ComponentStatusList"}}
	for _, name := range components {
		if info.Name == "" || info.Name == name {
			list.Items = append(list.Items, corev1.ComponentStatus{ObjectMeta: metav1.ObjectMeta{Name: name},
				Conditions: []corev1.ComponentCondition{{Type: corev1.ComponentHealthy, Status: corev1.ConditionTrue, Message: "ok"}}})
		}
	}
	var out runtime.Object = list
	switch {
	case info.Verb != "get" && info.Verb != "list":
		return errMethod
	case info.Verb == "get" && len(list.Items) == 0:
		return apierrors.NewInternalError(fmt.Errorf("component not found: %s", info.Name))
	case info.Verb == "get":
		out = &list.Items[0]
		codec.SetType(out, corev1.SchemeGroupVersion.WithKind("ComponentStatus"))
	}
	if f.as == "Table" {
		out = componentTable(list.Items)
	} else if f.as != "" {
		return apierrors.NewGenericServerResponse(http.StatusNotAcceptable, "", noResource, "", fmt.Sprintf("component statuses cannot be shown as %s", f.as), 0, false)
	}
	writeObject(w, r, http.StatusOK, f, out)
	return nil
}

func componentTable(items []corev1.ComponentStatus) *metav1.Table {
	column := func(name, format, description string) metav1.TableColumnDefinition {
		return metav1.TableColumnDefinition{Name: name, Type: "string", Format: format, Description: description}
	}
	t := &metav1.Table{TypeMeta: metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "Table"}, ColumnDefinitions: []metav1.TableColumnDefinition{
		column("Name", "name", "The component."), column("Status", "", "Healthy or not."), column("Message", "", "What it says."), column("Error", "", "What is wrong.")}}
	for i := range items {
		c := items[i].Conditions[0]
		t.Rows = append(t.Rows, metav1.TableRow{Cells: []any{items[i].Name, string(c.Type), c.Message, c.Error},
			Object: runtime.RawExtension{Object: &metav1.PartialObjectMetadata{
				TypeMeta: metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "PartialObjectMetadata"}, ObjectMeta: items[i].ObjectMeta}}})
	}
	return t
}
