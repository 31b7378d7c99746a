package container

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/container/image"
	"knarr.dev/knarr/container/snapshot"
)

// PullImage fetches an image and returns its ID.
func (s *Server) PullImage(ctx context.Context, req *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	a := req.GetAuth()
	auth := authn.AuthConfig{
		Username: a.GetUsername(), Password: a.GetPassword(), Auth: a.GetAuth(),
		IdentityToken: a.GetIdentityToken(), RegistryToken: a.GetRegistryToken(),
	}
	if auth.Auth != "" && auth.Username == "" {
		// The field holds base64 of user:password, which the JSON form decodes.
		if err := auth.UnmarshalJSON([]byte(`{"auth":` + strconv.Quote(auth.Auth) + `}`)); err != nil {
			return nil, fmt.Errorf("%w: reading the credentials: %w", errInvalid, err)
		}
	}
	i, err := s.images.Pull(ctx, req.GetImage().GetImage(), auth)
	if err != nil {
		return nil, fmt.Errorf("failed to pull and unpack image %q: %w", req.GetImage().GetImage(), err)
	}
	return &runtimeapi.PullImageResponse{ImageRef: i.ID}, nil
}

// Import reads images from an OCI layout folder or an archive of docker save
// and returns their names.
func (s *Server) Import(ctx context.Context, path string) ([]string, error) {
	return s.images.Import(ctx, path)
}

// ListImages lists the images that the filter selects.
func (s *Server) ListImages(_ context.Context, req *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	list, err := s.imageItems(req.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListImagesResponse{Images: list}, nil
}

func (s *Server) imageItems(f *runtimeapi.ImageFilter) ([]*runtimeapi.Image, error) {
	if ref := f.GetImage().GetImage(); ref != "" {
		i, err := s.images.Get(ref)
		if errors.Is(err, image.ErrNotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		return []*runtimeapi.Image{describe(i)}, nil
	}
	var list []*runtimeapi.Image
	for _, i := range s.images.List() {
		list = append(list, describe(i))
	}
	return list, nil
}

// StreamImages sends what ListImages answers, one message an image.
func (s *Server) StreamImages(req *runtimeapi.StreamImagesRequest, out runtimeapi.ImageService_StreamImagesServer) error {
	list, err := s.imageItems(req.GetFilter())
	if err != nil {
		return err
	}
	for _, i := range list {
		if err := out.Send(&runtimeapi.StreamImagesResponse{Images: []*runtimeapi.Image{i}}); err != nil {
			return err
		}
	}
	return nil
}

// ImageStatus describes one image; one that is not there is no error but an
// empty answer, as the CRI wants it.
func (s *Server) ImageStatus(_ context.Context, req *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	i, err := s.images.Get(req.GetImage().GetImage())
	if errors.Is(err, image.ErrNotFound) {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ImageStatusResponse{Image: describe(i)}
	if req.GetVerbose() {
		if resp.Info, err = info(map[string]any{"imageSpec": map[string]any{"created": i.Created, "config": i.Config}, "layers": i.Layers}); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

func describe(i *image.Image) *runtimeapi.Image {
	d := &runtimeapi.Image{
		Id: i.ID, RepoTags: i.Tags, RepoDigests: i.Digests, Size: uint64(max(i.Size, 1)),
		Spec: &runtimeapi.ImageSpec{Image: i.ID},
	}
	user, _, _ := strings.Cut(i.Config.User, ":")
	if user == "" {
		return d
	}
	if uid, err := strconv.ParseInt(user, 10, 64); err == nil {
		d.Uid = &runtimeapi.Int64Value{Value: uid}
	} else {
		d.Username = user
	}
	return d
}

// RemoveImage removes an image and the layers that only it has.
func (s *Server) RemoveImage(_ context.Context, req *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	used := map[string]bool{}
	for _, c := range s.listContainers(func(*container) bool { return true }) {
		used[c.ImageID] = true
		for _, m := range c.config().GetMounts() { // image volumes
			if i, err := s.images.Get(m.GetImage().GetImage()); m.GetImage() != nil && err == nil {
				used[i.ID] = true
			}
		}
	}
	if err := s.images.Remove(req.GetImage().GetImage(), used); err != nil {
		return nil, err
	}
	return &runtimeapi.RemoveImageResponse{}, nil
}

// ImageFsInfo measures the file system of images and of writable layers.
func (s *Server) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	usage := func(dir string) *runtimeapi.FilesystemUsage {
		bytes, inodes := snapshot.DiskUsage(filepath.Join(s.cfg.Root, dir))
		return &runtimeapi.FilesystemUsage{
			Timestamp: s.cfg.Now().UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: s.cfg.Root},
			UsedBytes: value(bytes), InodesUsed: value(inodes),
		}
	}
	return &runtimeapi.ImageFsInfoResponse{
		ImageFilesystems:     []*runtimeapi.FilesystemUsage{usage("layers")},
		ContainerFilesystems: []*runtimeapi.FilesystemUsage{usage("containers")},
	}, nil
}
