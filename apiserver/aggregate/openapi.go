package aggregate

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kube-openapi/pkg/aggregator"
	"k8s.io/kube-openapi/pkg/spec3"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// maxOpenAPI is the size in bytes of the longest document that is read.
const maxOpenAPI = 64 << 20

// OpenAPIV3 asks the extension server of a group and version for its description.
func (a *Aggregator) OpenAPIV3(ctx context.Context, gv schema.GroupVersion) (*spec3.OpenAPI, error) {
	doc := &spec3.OpenAPI{}
	if err := a.fetch(ctx, gv, "/openapi/v3/apis/"+gv.String(), doc); err != nil {
		return nil, err
	}
	return doc, nil
}

// MergeOpenAPIV2 adds to doc what the available extension servers say of their
// groups and versions. Those that say nothing are left out.
func (a *Aggregator) MergeOpenAPIV2(ctx context.Context, doc *spec.Swagger) {
	for _, r := range a.Remotes() {
		if !r.Current {
			continue
		}
		theirs := &spec.Swagger{}
		err := a.fetch(ctx, r.GroupVersion, "/openapi/v2", theirs)
		if err == nil {
			theirs = aggregator.FilterSpecByPathsWithoutSideEffects(theirs, []string{"/apis/" + r.GroupVersion.String() + "/"})
			err = aggregator.MergeSpecsIgnorePathConflictRenamingDefinitionsAndParameters(doc, theirs)
		}
		if err != nil {
			a.Log.Debug("OpenAPI v2 of an extension server is left out", "version", r.GroupVersion, "error", err)
		}
	}
}

// fetch reads a JSON document of an extension server.
func (a *Aggregator) fetch(ctx context.Context, gv schema.GroupVersion, path string, into any) error {
	r := (*a.table.Load())[gv]
	if r == nil || !r.available {
		return fmt.Errorf("%s of %s: no server is available", path, gv)
	}
	if err := r.get(ctx, path, maxOpenAPI, into); err != nil {
		return fmt.Errorf("%s of %s: %w", path, gv, err)
	}
	return nil
}
