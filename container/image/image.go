// Package image pulls, imports, keeps and collects container images. Layers
// live in a [snapshot.Store]; what is kept here is one JSON file an image.
package image

import (
	"errors"
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Image is one image on this machine. Values are immutable.
type Image struct {
	ID      string   // digest of the configuration, sha256:...
	Tags    []string // as in docker.io/library/busybox:1.36
	Digests []string // as in docker.io/library/busybox@sha256:...
	Layers  []string // digests of the uncompressed layers, lowest first
	Size    int64    // bytes unpacked
	Config  v1.Config
	Created time.Time // here
}

// Error classes; [Store] wraps them.
var (
	ErrNotFound     = errors.New("not found")
	ErrUnauthorized = errors.New("unauthorized")
	ErrInvalid      = errors.New("invalid reference")
	ErrInUse        = errors.New("used by a container")
)

// Normalize returns the full form of a reference, as Kubernetes shows it:
// docker.io/library/busybox:latest for busybox.
func Normalize(ref string) (string, error) {
	r, err := name.ParseReference(ref, name.WeakValidation)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if d, ok := r.(name.Digest); ok {
		return repository(r.Context()) + "@" + d.DigestStr(), nil
	}
	return repository(r.Context()) + ":" + r.Identifier(), nil
}

func repository(r name.Repository) string {
	registry := r.RegistryStr()
	if registry == name.DefaultRegistry {
		registry = "docker.io"
	}
	return registry + "/" + r.RepositoryStr()
}

// DigestFor is the image's digest in the repository of the first of refs that
// names one it was pulled from, else any; empty for one that was imported.
func (i *Image) DigestFor(refs ...string) string {
	for _, ref := range refs {
		r, err := name.ParseReference(ref, name.WeakValidation)
		if err != nil {
			continue
		}
		for _, d := range i.Digests {
			if strings.HasPrefix(d, repository(r.Context())+"@") {
				return d
			}
		}
	}
	if len(i.Digests) > 0 {
		return i.Digests[0]
	}
	return ""
}

// with returns a copy that has the references too.
func (i *Image) with(tag, digest string) *Image {
	c := *i
	c.Tags, c.Digests = include(i.Tags, tag), include(i.Digests, digest)
	return &c
}

// without returns a copy that lacks the reference.
func (i *Image) without(ref string) *Image {
	c := *i
	c.Tags, c.Digests = exclude(i.Tags, ref), exclude(i.Digests, ref)
	return &c
}

func include(list []string, s string) []string {
	out := exclude(list, s)
	if s != "" {
		out = append(out, s)
		sort.Strings(out)
	}
	return out
}

func exclude(list []string, s string) []string {
	out := make([]string, 0, len(list)+1)
	for _, l := range list {
		if l != s {
			out = append(out, l)
		}
	}
	return out
}

func (i *Image) named(ref string) bool {
	for _, l := range [][]string{i.Tags, i.Digests} {
		for _, s := range l {
			if s == ref {
				return true
			}
		}
	}
	return false
}

// isID recognises a configuration digest, whole or shortened, with or without its prefix.
func isID(ref string) bool {
	h := strings.TrimPrefix(ref, "sha256:")
	if len(h) < 12 || len(h) > 64 {
		return false
	}
	return strings.Trim(h, "0123456789abcdef") == ""
}
