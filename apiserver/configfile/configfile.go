// Package configfile reads the API server's configuration files: YAML with an
// apiVersion and a kind, in which an unknown field is an error.
package configfile

import (
	"fmt"
	"os"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// Read fills into from a file, which must be of a version and kind. Its errors name
// the file and what it is for, such as "authorization configuration".
func Read(file, what, apiVersion, kind string, into any) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	var t metav1.TypeMeta
	if err := yaml.Unmarshal(b, &t); err != nil {
		return fmt.Errorf("%s %s: %w", what, file, err)
	}
	if t.APIVersion != apiVersion || t.Kind != kind {
		return fmt.Errorf("%s %s: want apiVersion %s and kind %s", what, file, apiVersion, kind)
	}
	if err := yaml.UnmarshalStrict(b, into); err != nil {
		return fmt.Errorf("%s %s: %w", what, file, err)
	}
	return nil
}
