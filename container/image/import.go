package image

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Names of the annotation by which layouts name their images.
var nameAnnotations = [...]string{"io.containerd.image.name", "org.opencontainers.image.ref.name"}

// Import reads the images of an OCI layout folder or of an archive as docker
// save writes it, and returns their names (IDs of those that have none).
func (s *Store) Import(ctx context.Context, path string) ([]string, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("importing images: %w", err)
	}
	if st.IsDir() {
		return s.importLayout(ctx, path)
	}
	manifest, err := tarball.LoadManifest(func() (io.ReadCloser, error) { return os.Open(path) })
	if err != nil {
		return nil, fmt.Errorf("importing %s: not an archive of docker save: %w", path, err)
	}
	var names []string
	for _, m := range manifest {
		tags := m.RepoTags
		if len(tags) == 0 {
			tags = []string{""}
		}
		for _, t := range tags {
			var tag *name.Tag
			if t != "" {
				parsed, err := name.NewTag(t, name.WeakValidation)
				if err != nil {
					return names, fmt.Errorf("importing %s: %w", path, err)
				}
				tag = &parsed
			}
			img, err := tarball.ImageFromPath(path, tag)
			if err != nil {
				return names, fmt.Errorf("importing %s: %w", path, err)
			}
			n, err := s.importOne(ctx, img, t)
			if err != nil {
				return names, fmt.Errorf("importing %s: %w", path, err)
			}
			names = append(names, n)
		}
	}
	return names, nil
}

func (s *Store) importLayout(ctx context.Context, path string) ([]string, error) {
	index, err := layout.ImageIndexFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("importing %s: not an OCI layout: %w", path, err)
	}
	return s.importIndex(ctx, index, "")
}

func (s *Store) importIndex(ctx context.Context, index v1.ImageIndex, named string) ([]string, error) {
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, d := range manifest.Manifests {
		ref := named
		for _, a := range nameAnnotations {
			if v := d.Annotations[a]; v != "" && ref == "" {
				ref = v
			}
		}
		if p := d.Platform; p != nil && (p.OS != "linux" || p.Architecture != runtime.GOARCH) {
			continue
		}
		if d.MediaType.IsIndex() {
			inner, err := index.ImageIndex(d.Digest)
			if err != nil {
				return names, err
			}
			more, err := s.importIndex(ctx, inner, ref)
			names = append(names, more...)
			if err != nil {
				return names, err
			}
			continue
		}
		if !d.MediaType.IsImage() {
			continue
		}
		img, err := index.Image(d.Digest)
		if err != nil {
			return names, err
		}
		n, err := s.importOne(ctx, img, ref)
		if err != nil {
			return names, err
		}
		names = append(names, n)
	}
	return names, nil
}

func (s *Store) importOne(ctx context.Context, img v1.Image, ref string) (string, error) {
	tag, digest := "", ""
	if ref != "" {
		t, err := name.NewTag(ref, name.WeakValidation)
		if err == nil {
			tag = repository(t.Context()) + ":" + t.TagStr()
			d, err := img.Digest()
			if err != nil {
				return "", err
			}
			digest = repository(t.Context()) + "@" + d.String()
		}
	}
	i, err := s.unpack(ctx, img, tag, digest)
	if err != nil {
		return "", err
	}
	if tag != "" {
		return tag, nil
	}
	return i.ID, nil
}
