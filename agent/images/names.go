package images

import (
	"fmt"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

// checkName refuses what is no image reference.
func checkName(image string) error {
	if _, err := name.ParseReference(image, name.WeakValidation); err != nil {
		return fmt.Errorf("couldn't parse image name %q: invalid reference format", image)
	}
	return nil
}

// withTag makes the default tag explicit.
func withTag(image string) string {
	if strings.Contains(image, "@") {
		return image
	}
	if i := strings.LastIndexByte(image, '/'); strings.Contains(image[i+1:], ":") {
		return image
	}
	return image + ":latest"
}

// repositoryOf is an image's name without its tag and digest.
func repositoryOf(image string) string {
	image, _, _ = strings.Cut(image, "@")
	if i := strings.LastIndexByte(image, ':'); i > strings.LastIndexByte(image, '/') {
		return image[:i]
	}
	return image
}
