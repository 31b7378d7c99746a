package diff

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"
)

// gadgets declares the custom resources of corpus/custom.txt.
const gadgets = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: gadgets.corpus.example.com}
spec:
  group: corpus.example.com
  scope: Namespaced
  names: {plural: gadgets, kind: Gadget}
  versions:
  - name: v1
    served: true
    storage: true
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.size, statusReplicasPath: .status.replicas}
    additionalPrinterColumns:
    - {name: Size, type: integer, jsonPath: .spec.size}
    - {name: Mode, type: string, jsonPath: .spec.mode, priority: 1}
    - {name: Parts, type: string, jsonPath: ".spec.parts[*].name"}
    schema:
      openAPIV3Schema:
        type: object
        required: [spec]
        properties:
          spec:
            type: object
            required: [size]
            properties:
              size: {type: integer, minimum: 1, maximum: 10}
              name: {type: string, pattern: '^[a-z]+$', maxLength: 8, minLength: 2, default: abc}
              mode: {type: string, enum: [a, b]}
              when: {type: string, format: date-time}
              address: {type: string, format: ipv4}
              big: {type: integer, format: int32}
              ratio: {type: number, multipleOf: 0.5, exclusiveMinimum: true, minimum: 0}
              tags: {type: array, maxItems: 3, items: {type: string}, x-kubernetes-list-type: set}
              parts:
                type: array
                minItems: 1
                x-kubernetes-list-type: map
                x-kubernetes-list-map-keys: [name]
                items:
                  type: object
                  required: [name]
                  properties:
                    name: {type: string}
                    value: {type: integer, default: 7}
              port: {x-kubernetes-int-or-string: true}
              free: {type: object, x-kubernetes-preserve-unknown-fields: true}
              nested:
                type: object
                default: {}
                properties:
                  deep: {type: integer, default: 5}
                  none: {type: string, nullable: true, default: x}
              maybe: {type: string, nullable: true}
              words: {type: object, maxProperties: 2, additionalProperties: {type: string}}
              fixed: {type: string, x-kubernetes-validations: [{rule: self == oldSelf, message: is fixed, reason: FieldValueForbidden}]}
              pod: {type: object, x-kubernetes-embedded-resource: true, x-kubernetes-preserve-unknown-fields: true}
              either:
                type: object
                properties: {one: {type: integer}, two: {type: integer}}
                oneOf: [{required: [one]}, {required: [two]}]
            x-kubernetes-validations:
            - {rule: "!has(self.mode) || self.mode != 'b' || self.size > 5", message: b is large}
            - {rule: "!has(self.tags) || self.tags.all(t, t != self.name)", messageExpression: "'no tag may be ' + self.name", fieldPath: .tags}
            - {rule: "self.size >= oldSelf.size || oldSelf.size > 8"}
          status:
            type: object
            properties:
              ready: {type: boolean}
              replicas: {type: integer}
`

// Define makes the custom resource definition that cases need, and learns where its
// objects are.
func (s *Server) Define(ctx context.Context) error {
	o := map[string]any{}
	if err := yaml.Unmarshal([]byte(gadgets), &o); err != nil {
		return err
	}
	if v, _, err := s.send(ctx, http.MethodPost, s.collection(o), o); err != nil || v.Code != http.StatusCreated {
		return fmt.Errorf("define: %+v: %w", v, err)
	}
	gv := schema.GroupVersion{Group: "corpus.example.com", Version: "v1"}
	s.paths[gv.WithKind("Gadget")] = place{"gadgets", true}
	path := "/apis/" + gv.String() + "/namespaces/" + namespace + "/gadgets"
	for tick := time.NewTicker(10 * time.Millisecond); ; {
		r, err := s.do(ctx, http.MethodGet, path, "application/json", nil)
		if err != nil || r.code == http.StatusOK {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("gadgets are not served: %w", ctx.Err())
		}
	}
}
