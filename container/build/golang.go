package build

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// nobody is the user that a Go program's image runs as.
const nobody = "65532:65532"

// Go compiles the main package in dir's module, without C and without anything of
// the machine in it, and makes an image of the program alone. The go command
// must be there; dir is where it runs, pkg what it builds.
func Go(ctx context.Context, dir, pkg string) (v1.Image, error) {
	tmp, err := os.MkdirTemp("", "knarr-build-")
	if err != nil {
		return nil, fmt.Errorf("making a folder for the program: %w", err)
	}
	defer os.RemoveAll(tmp)
	out := filepath.Join(tmp, "program")
	c := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid=", "-o", out, pkg)
	c.Dir = dir
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+runtime.GOARCH)
	if text, err := c.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("compiling %s: %w\n%s", pkg, err, strings.TrimSpace(string(text)))
	}
	name, err := programName(ctx, dir, pkg)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(out)
	if err != nil {
		return nil, err
	}
	l := layer{}
	l[name] = file{mode: 0o755, typ: tar.TypeReg, size: info.Size(), open: func() (io.ReadCloser, error) { return os.Open(out) }}
	l.folder("tmp", 0o1777)
	l.text("etc/passwd", "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n")
	l.text("etc/group", "root:x:0:\nnonroot:x:65532:\n")
	packed, err := l.pack()
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, packed)
	if err != nil {
		return nil, err
	}
	return finish(img, v1.Config{Entrypoint: []string{"/" + name}, User: nobody, Env: []string{"PATH=/"}})
}

// programName is what go install would call the program.
func programName(ctx context.Context, dir, pkg string) (string, error) {
	c := exec.CommandContext(ctx, "go", "list", "-f", "{{.Name}} {{.ImportPath}}", pkg)
	c.Dir = dir
	text, err := c.Output()
	if err != nil {
		return "", fmt.Errorf("looking at %s: %w", pkg, err)
	}
	kind, importPath, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	if kind != "main" {
		return "", fmt.Errorf("%s is package %s: only a main package is a program", pkg, kind)
	}
	return path.Base(importPath), nil
}
