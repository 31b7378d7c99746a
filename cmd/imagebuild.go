package cmd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/spf13/cobra"

	"knarr.dev/knarr/container/build"
)

func imageBuild() *cobra.Command {
	c := &cobra.Command{
		Use:   "build -t NAME [FOLDER | --go PACKAGE]",
		Short: "Build an image from a Dockerfile that only copies, or from a Go program",
		Long: `Build an image without running anything: from FOLDER/Dockerfile, of one stage or
several, less what FOLDER/.dockerignore names. The Dockerfile may hold FROM, ARG, COPY, ADD of local files, ENV, LABEL, WORKDIR, USER, EXPOSE, STOPSIGNAL,
ENTRYPOINT and CMD, or with --go from a Go main package. The same input gives
the same image. It goes to this node, or with --push to its registry, or with
--output into an archive.`,
		Args: cobra.MaximumNArgs(1),
		Example: `  knarr image build -t example.com/site:1 .
  knarr image build -t example.com/hello:1 --go ./cmd/hello --push`,
	}
	f := c.Flags()
	tag := f.StringP("tag", "t", "", "the image's name")
	dockerfile := f.StringP("file", "f", "", "Dockerfile; empty: that in FOLDER")
	goPackage := f.String("go", "", "Go main package to be the image")
	args := f.StringArray("build-arg", nil, "NAME=VALUE for ARG")
	out := f.StringP("output", "o", "", "write an archive as docker save does")
	push := f.Bool("push", false, "push to the registry that the name says")
	creds := f.String("creds", "", "user:password for the registry")
	load := runningFlags(c)
	c.RunE = func(c *cobra.Command, folders []string) error {
		cfg, err := load()
		if err != nil {
			return err
		}
		if *tag == "" {
			return errors.New("tag: give the image a name")
		}
		ref, err := name.NewTag(*tag, name.WeakValidation)
		if err != nil {
			return fmt.Errorf("tag: %w", err)
		}
		r := registryAccess(*creds)
		var img v1.Image
		switch {
		case *goPackage != "" && len(folders) > 0:
			return errors.New("give a folder with a Dockerfile, or a Go package, not both")
		case *goPackage != "":
			img, err = build.Go(c.Context(), ".", *goPackage)
		default:
			img, err = buildFolder(c.Context(), append(folders, ".")[0], *dockerfile, *args, r)
		}
		if err != nil {
			return err
		}
		digest, err := img.Digest()
		if err != nil {
			return err
		}
		switch {
		case *push:
			err = remote.Write(ref, img, append(r, remote.WithContext(c.Context()))...)
		case *out != "":
			err = tarball.WriteToFile(*out, ref, img)
		default:
			err = loadImage(c.Context(), cfg, ref, img)
		}
		if err != nil {
			return fmt.Errorf("built %s, but it did not reach its place: %w", digest, err)
		}
		fmt.Fprintf(c.OutOrStdout(), "%s@%s\n", ref.Name(), digest)
		return nil
	}
	return c
}

// registryAccess are the options to reach registries: with credentials if given,
// else those of docker's configuration.
func registryAccess(creds string) []remote.Option {
	opts := []remote.Option{remote.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}), remote.WithUserAgent("knarr")}
	if user, password, ok := strings.Cut(creds, ":"); ok {
		return append(opts, remote.WithAuth(authn.FromConfig(authn.AuthConfig{Username: user, Password: password})))
	}
	return append(opts, remote.WithAuthFromKeychain(authn.DefaultKeychain))
}

func buildFolder(ctx context.Context, folder, dockerfile string, args []string, access []remote.Option) (v1.Image, error) {
	if dockerfile == "" {
		dockerfile = filepath.Join(folder, "Dockerfile")
	}
	text, err := os.ReadFile(dockerfile)
	if err != nil {
		return nil, fmt.Errorf("build: %w", err)
	}
	root, err := os.OpenRoot(folder)
	if err != nil {
		return nil, fmt.Errorf("build: %w", err)
	}
	defer root.Close()
	o := build.Options{Dockerfile: string(text), Context: root.FS(), Args: map[string]string{}}
	for _, file := range []string{dockerfile + ".dockerignore", filepath.Join(folder, ".dockerignore")} {
		rules, err := os.ReadFile(file)
		if err == nil {
			o.Ignore = string(rules)
			break
		}
		if !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("build: %w", err)
		}
	}
	for _, a := range args {
		k, v, _ := strings.Cut(a, "=")
		o.Args[k] = v
	}
	o.Base = func(ctx context.Context, ref string) (v1.Image, error) {
		r, err := name.ParseReference(ref, name.WeakValidation)
		if err != nil {
			return nil, err
		}
		return remote.Image(r, append(access, remote.WithContext(ctx))...)
	}
	img, err := build.Build(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dockerfile, err)
	}
	return img, nil
}

// loadImage gives an image to this node.
func loadImage(ctx context.Context, cfg *Config, ref name.Tag, img v1.Image) error {
	f, err := os.CreateTemp("", "knarr-image-*.tar")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	f.Close()
	if err := tarball.WriteToFile(f.Name(), ref, img); err != nil {
		return err
	}
	_, err = importImages(ctx, cfg, f.Name())
	return err
}
