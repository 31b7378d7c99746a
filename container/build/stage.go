package build

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// stage is one of a Dockerfile's images; the last is the result, the others are there to
// be copied from.
type stage struct {
	name  string // of FROM ... AS name, in lower case
	image v1.Image
}

// begin ends the stage under way, if there is one, and begins another.
func (b *builder) begin(name string) error {
	if b.begun {
		if err := b.end(); err != nil {
			return err
		}
	}
	for _, s := range b.stages {
		if name != "" && s.name == name {
			return fmt.Errorf("there is a stage called %s already", name)
		}
	}
	b.begun, b.name, b.config, b.args = true, name, v1.Config{}, map[string]string{}
	return nil
}

func (b *builder) end() error {
	img, err := finish(b.image, b.config)
	if err != nil {
		return err
	}
	b.stages = append(b.stages, stage{b.name, img})
	return nil
}

// stageOf finds an earlier stage by its name or number.
func (b *builder) stageOf(name string) (v1.Image, bool) {
	for n, s := range b.stages {
		if s.name != "" && s.name == strings.ToLower(name) || strconv.Itoa(n) == name {
			return s.image, true
		}
	}
	return nil, false
}

// filesOf are those of an earlier stage, or of an image: COPY --from. They are unpacked
// once, into a folder that goes with the build.
func (b *builder) filesOf(ctx context.Context, from string) (fs.FS, error) {
	if root := b.unpacked[from]; root != nil {
		return root.FS(), nil
	}
	img, ok := b.stageOf(from)
	if !ok {
		if _, err := strconv.Atoi(from); err == nil {
			return nil, fmt.Errorf("--from=%s: there is no such stage before this one", from)
		}
		var err error
		if img, err = b.Base(ctx, from); err != nil {
			return nil, fmt.Errorf("--from=%s: it is no stage before this one, and as an image: %w", from, err)
		}
	}
	dir, err := os.MkdirTemp("", "knarr-build-")
	if err != nil {
		return nil, err
	}
	b.folders = append(b.folders, dir)
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	b.unpacked[from] = root
	if err := unpack(root, img); err != nil {
		return nil, fmt.Errorf("--from=%s: %w", from, err)
	}
	return root.FS(), nil
}

// close removes what was unpacked.
func (b *builder) close() error {
	var errs []error
	for _, r := range b.unpacked {
		errs = append(errs, r.Close())
	}
	for _, d := range b.folders {
		errs = append(errs, os.RemoveAll(d))
	}
	return errors.Join(errs...)
}

// unpack writes an image's files below root. Owners are not kept, as COPY gives its own;
// devices and the like cannot be copied and are left out.
func unpack(root *os.Root, img v1.Image) error {
	r := mutate.Extract(img)
	defer r.Close()
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the image: %w", err)
		}
		if err := unpackOne(root, h, tr); err != nil {
			return fmt.Errorf("unpacking /%s: %w", h.Name, err)
		}
	}
}

func unpackOne(root *os.Root, h *tar.Header, body io.Reader) error {
	name := path.Clean("/" + h.Name)[1:]
	if name == "" {
		return nil
	}
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	mode := h.FileInfo().Mode()
	switch h.Typeflag {
	case tar.TypeDir:
		if err := root.Mkdir(name, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return root.Chmod(name, mode|0o700) // we want to read it, whoever we are
	case tar.TypeReg:
		f, err := root.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, body)
		return errors.Join(err, f.Chmod(mode|0o400), f.Close())
	case tar.TypeSymlink:
		return root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		return root.Link(path.Clean("/" + h.Linkname)[1:], name)
	}
	return nil
}
