package container

import (
	"context"
	"encoding/json"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The CRI has no calls for images in files. Those of this service stand beside
// it on the same socket; both sides must be on one machine, as they exchange paths.
const (
	filesService = "knarr.ImageFiles"
	importMethod = "Import"
	exportMethod = "Export"
)

// export is what Export is asked for.
type export struct {
	Images []string
	File   string
}

// imageFiles describes the service in the generated code's stead: JSON in one
// string each way needs no messages of its own.
func imageFiles() *grpc.ServiceDesc {
	return &grpc.ServiceDesc{ServiceName: filesService, HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{
		{MethodName: importMethod, Handler: textHandler(func(ctx context.Context, s *Server, path string) (string, error) {
			names, err := s.Import(ctx, path)
			if err != nil {
				return "", err
			}
			text, err := json.Marshal(names)
			return string(text), err
		})},
		{MethodName: exportMethod, Handler: textHandler(func(ctx context.Context, s *Server, text string) (string, error) {
			var e export
			if err := json.Unmarshal([]byte(text), &e); err != nil {
				return "", fmt.Errorf("%w: %w", errInvalid, err)
			}
			return "", s.images.Export(ctx, e.Images, e.File)
		})},
	}}
}

// textHandler answers a string with a string.
func textHandler(do func(context.Context, *Server, string) (string, error)) grpc.MethodHandler {
	return func(srv any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		req := &wrapperspb.StringValue{}
		if err := decode(req); err != nil {
			return nil, err
		}
		out, err := do(ctx, srv.(*Server), req.GetValue())
		if err != nil {
			return nil, coded(err)
		}
		return wrapperspb.String(out), nil
	}
}

// ImportFile has the runtime at conn read images from an OCI layout folder or an
// archive of docker save on this machine, and returns their names. path is absolute.
func ImportFile(ctx context.Context, conn grpc.ClientConnInterface, path string) ([]string, error) {
	resp := &wrapperspb.StringValue{}
	if err := conn.Invoke(ctx, "/"+filesService+"/"+importMethod, wrapperspb.String(path), resp); err != nil {
		return nil, err
	}
	var names []string
	if err := json.Unmarshal([]byte(resp.GetValue()), &names); err != nil {
		return nil, fmt.Errorf("reading the runtime's answer: %w", err)
	}
	return names, nil
}

// ExportFile has the runtime at conn write images into an archive as docker save
// does. path is absolute.
func ExportFile(ctx context.Context, conn grpc.ClientConnInterface, images []string, path string) error {
	text, err := json.Marshal(export{images, path})
	if err != nil {
		return err
	}
	return conn.Invoke(ctx, "/"+filesService+"/"+exportMethod, wrapperspb.String(string(text)), &wrapperspb.StringValue{})
}
