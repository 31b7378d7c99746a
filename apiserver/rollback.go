package apiserver

import (
	"fmt"
	"net/http"
	"slices"

	appsv1beta1 "k8s.io/api/apps/v1beta1"
	extensionsv1beta1 "k8s.io/api/extensions/v1beta1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/registry"
)

func hasOther(res *registry.Resource, name string) bool {
	return slices.ContainsFunc(res.Others, func(s kind.Subresource) bool { return s.Name == name })
}

// rollback asks for a former revision of a deployment, as kubectl rollout undo did
// before apps/v1. The deployment controller does it.
func (s *Server) rollback(w http.ResponseWriter, r *http.Request, verb string, q registry.Request) error {
	if verb != "create" {
		return apierrors.NewMethodNotSupported(q.Resource.GroupResource(), verb)
	}
	gvk := q.Resource.GVK()
	gvk.Kind = "DeploymentRollback"
	var want extensionsv1beta1.DeploymentRollback
	if gvk.Group == extensionsv1beta1.GroupName {
		if err := decode(w, r, gvk, &want); err != nil {
			return err
		}
	} else {
		var o appsv1beta1.DeploymentRollback
		if err := decode(w, r, gvk, &o); err != nil {
			return err
		}
		want.Name, want.UpdatedAnnotations, want.RollbackTo.Revision = o.Name, o.UpdatedAnnotations, o.RollbackTo.Revision
	}
	switch {
	case want.Name == "":
		return apierrors.NewInvalid(gvk.GroupKind(), "", field.ErrorList{field.Required(field.NewPath("name"), "name is required")})
	case want.Name != q.Name:
		return apierrors.NewBadRequest(fmt.Sprintf("name in URL does not match name in DeploymentRollback object: %q, %q", q.Name, want.Name))
	}
	q.Subresource = ""
	if err := s.reg.Rollback(r.Context(), q, want.RollbackTo.Revision, want.UpdatedAnnotations); err != nil {
		return err
	}
	writeObject(w, r, http.StatusCreated, format{}, &metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusSuccess,
		Message: fmt.Sprintf("rollback request for deployment %q succeeded", q.Name), Code: http.StatusOK})
	return nil
}
