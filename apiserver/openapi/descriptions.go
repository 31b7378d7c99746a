package openapi

import (
	_ "embed" // descriptions.json
	"reflect"
	"sync"
)

//go:embed descriptions.json
var descriptionsJSON []byte

// described has, by the name of a type that does not describe itself, the
// descriptions of its fields, and its own as that of the field "". Those of "*" are
// of fields that many types have.
var described = sync.OnceValue(func() map[string]map[string]string {
	return embedded[map[string]string]("descriptions.json", descriptionsJSON)
})

// descriptionsOf returns the descriptions of a type's fields, and its own as that of
// the field "".
func descriptionsOf(t reflect.Type) map[string]string {
	if d, ok := reflect.New(t).Interface().(interface{ SwaggerDoc() map[string]string }); ok {
		return d.SwaggerDoc()
	}
	return described()[t.Name()]
}
