package cmd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/container"
	"knarr.dev/knarr/cri"
)

func imageCommand() *cobra.Command {
	c := &cobra.Command{Use: "image", Short: "List, pull, import, export, build and remove this node's images"}
	c.AddCommand(imageList(), imagePull(), imageRemove(), imagePrune(), imageImport(), imageExport(), imageBuild())
	return c
}

// onRuntime makes a command that speaks to the running runtime.
func onRuntime(c *cobra.Command, do func(*cobra.Command, *cri.Client, []string) error) *cobra.Command {
	load := runningFlags(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		cfg, err := load()
		if err != nil {
			return err
		}
		conn, err := cri.Dial(cfg.criSocket())
		if err != nil {
			return err
		}
		defer conn.Close()
		return do(c, conn, args)
	}
	return c
}

func imageList() *cobra.Command {
	c := &cobra.Command{Use: "ls", Aliases: []string{"list"}, Short: "List the images on this node", Args: cobra.NoArgs}
	return onRuntime(c, func(c *cobra.Command, conn *cri.Client, _ []string) error {
		list, err := conn.Images.ListImages(c.Context(), &runtimeapi.ListImagesRequest{})
		if err != nil {
			return fmt.Errorf("list images: %w: is the node up?", err)
		}
		w := tabwriter.NewWriter(c.OutOrStdout(), 0, 8, 2, ' ', 0)
		fmt.Fprintln(w, "IMAGE\tID\tSIZE")
		for _, im := range list.Images {
			names := im.RepoTags
			if len(names) == 0 {
				names = im.RepoDigests
			}
			if len(names) == 0 {
				names = []string{"<none>"}
			}
			for _, n := range names {
				id := strings.TrimPrefix(im.Id, "sha256:")
				fmt.Fprintf(w, "%s\t%s\t%.1f MB\n", n, id[:min(12, len(id))], float64(im.Size)/1e6)
			}
		}
		return w.Flush()
	})
}

func imagePull() *cobra.Command {
	c := &cobra.Command{Use: "pull IMAGE...", Short: "Pull images from their registries", Args: cobra.MinimumNArgs(1)}
	creds := c.Flags().String("creds", "", "user:password for the registry")
	return onRuntime(c, func(c *cobra.Command, conn *cri.Client, args []string) error {
		var auth *runtimeapi.AuthConfig
		if *creds != "" {
			user, password, ok := strings.Cut(*creds, ":")
			if !ok {
				return errors.New("creds: want user:password")
			}
			auth = &runtimeapi.AuthConfig{Username: user, Password: password}
		}
		for _, ref := range args {
			resp, err := conn.Images.PullImage(c.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}, Auth: auth})
			if err != nil {
				return err
			}
			fmt.Fprintln(c.OutOrStdout(), resp.ImageRef)
		}
		return nil
	})
}

func imageRemove() *cobra.Command {
	c := &cobra.Command{Use: "rm IMAGE...", Short: "Remove images that no container uses", Args: cobra.MinimumNArgs(1)}
	return onRuntime(c, func(c *cobra.Command, conn *cri.Client, args []string) error {
		for _, ref := range args {
			spec := &runtimeapi.ImageSpec{Image: ref}
			// The CRI takes an image that is not there for removed; a person has mistyped.
			st, err := conn.Images.ImageStatus(c.Context(), &runtimeapi.ImageStatusRequest{Image: spec})
			if err != nil {
				return err
			}
			if st.Image == nil {
				return fmt.Errorf("image %s is not on this node", ref)
			}
			if _, err := conn.Images.RemoveImage(c.Context(), &runtimeapi.RemoveImageRequest{Image: spec}); err != nil {
				return fmt.Errorf("remove %s: %w", ref, err)
			}
		}
		return nil
	})
}

func imagePrune() *cobra.Command {
	c := &cobra.Command{Use: "prune", Short: "Remove all images that no container uses", Args: cobra.NoArgs}
	return onRuntime(c, func(c *cobra.Command, conn *cri.Client, _ []string) error {
		used := map[string]bool{}
		running, err := conn.Runtime.ListContainers(c.Context(), &runtimeapi.ListContainersRequest{})
		if err != nil {
			return fmt.Errorf("list containers: %w: is the node up?", err)
		}
		for _, r := range running.Containers {
			used[r.ImageId] = true
		}
		list, err := conn.Images.ListImages(c.Context(), &runtimeapi.ListImagesRequest{})
		if err != nil {
			return err
		}
		var freed uint64
		for _, im := range list.Images {
			if used[im.Id] || im.Pinned {
				continue
			}
			if _, err := conn.Images.RemoveImage(c.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: im.Id}}); err != nil {
				return fmt.Errorf("remove %s: %w", im.Id, err)
			}
			freed += im.Size
			fmt.Fprintln(c.OutOrStdout(), strings.Join(append(im.RepoTags, im.Id), " "))
		}
		fmt.Fprintf(c.OutOrStdout(), "%.1f MB of images removed; layers that others share stay\n", float64(freed)/1e6)
		return nil
	})
}

func imageImport() *cobra.Command {
	c := &cobra.Command{Use: "import FILE...", Short: "Import OCI layout folders or docker-archive files, without a registry", Args: cobra.MinimumNArgs(1)}
	load := runningFlags(c)
	c.RunE = func(c *cobra.Command, files []string) error {
		cfg, err := load()
		if err != nil {
			return err
		}
		for _, f := range files {
			names, err := importImages(c.Context(), cfg, f)
			if err != nil {
				return fmt.Errorf("import %s: %w", f, err)
			}
			for _, n := range names {
				fmt.Fprintln(c.OutOrStdout(), n)
			}
		}
		return nil
	}
	return c
}

// importImages gives a file's images to the running runtime, or where none runs
// puts them where the next one will find them.
func importImages(ctx context.Context, cfg *Config, file string) ([]string, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("this must run as root")
	}
	path, err := filepath.Abs(file)
	if err != nil {
		return nil, err
	}
	if cfg.process() != 0 {
		conn, err := dialFiles(cfg)
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		return container.ImportFile(ctx, conn, path)
	}
	s, err := container.New(ctx, cfg.containerConfig(nil, logger(cfg.LogLevel, os.Stderr)))
	if err != nil {
		return nil, err
	}
	names, err := s.Import(ctx, path)
	return names, errors.Join(err, s.Close())
}

func dialFiles(cfg *Config) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix://"+cfg.criSocket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
}

func imageExport() *cobra.Command {
	c := &cobra.Command{Use: "export IMAGE... -o FILE", Short: "Write images into an archive as docker save does", Args: cobra.MinimumNArgs(1)}
	out := c.Flags().StringP("output", "o", "", "the archive")
	load := runningFlags(c)
	c.RunE = func(c *cobra.Command, images []string) error {
		cfg, err := load()
		if err != nil {
			return err
		}
		if *out == "" {
			return errors.New("output: give the archive's name")
		}
		path, err := filepath.Abs(*out)
		if err != nil {
			return err
		}
		conn, err := dialFiles(cfg)
		if err != nil {
			return err
		}
		defer conn.Close()
		return container.ExportFile(c.Context(), conn, images, path)
	}
	return c
}
