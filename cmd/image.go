package cmd

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/container"
	"knarr.dev/knarr/cri"
)

func imageCommand() *cobra.Command {
	c := &cobra.Command{Use: "image", Short: "Look at and import this node's images"}
	c.AddCommand(imageList(), imageImport())
	return c
}

func imageList() *cobra.Command {
	c := &cobra.Command{Use: "list", Short: "List the images on this node", Args: cobra.NoArgs}
	load := runningFlags(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		cfg, err := load()
		if err != nil {
			return err
		}
		conn, err := cri.Dial(cfg.criSocket())
		if err != nil {
			return err
		}
		defer conn.Close()
		list, err := conn.Images.ListImages(c.Context(), &runtimeapi.ListImagesRequest{})
		if err != nil {
			return fmt.Errorf("list images: %w: is the cluster up?", err)
		}
		for _, im := range list.Images {
			name := im.Id
			if len(im.RepoTags) > 0 {
				name = im.RepoTags[0]
			}
			fmt.Fprintf(c.OutOrStdout(), "%-60s %8.1f MB\n", name, float64(im.Size)/1e6)
		}
		return nil
	}
	return c
}

func imageImport() *cobra.Command {
	c := &cobra.Command{Use: "import FILE...", Short: "Import OCI layout folders or docker-archive files, without a registry", Args: cobra.MinimumNArgs(1)}
	load := runningFlags(c)
	c.RunE = func(c *cobra.Command, files []string) error {
		cfg, err := load()
		if err != nil {
			return err
		}
		if os.Geteuid() != 0 {
			return errors.New("knarr image import must run as root")
		}
		if pid := cfg.process(); pid != 0 {
			return fmt.Errorf("%s is running (process %d): import before \"knarr up\", or push to a registry", cfg.Name, pid)
		}
		s, err := container.New(c.Context(), cfg.containerConfig(nil, logger(cfg.LogLevel, os.Stderr)))
		if err != nil {
			return err
		}
		defer s.Close()
		for _, f := range files {
			names, err := s.Import(c.Context(), f)
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
