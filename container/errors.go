package container

import (
	"context"
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"knarr.dev/knarr/container/image"
)

// Error classes of this package; they become gRPC codes at the edge.
var (
	errNotFound = errors.New("not found")
	errExists   = errors.New("already exists")
	errState    = errors.New("wrong state")
	errInvalid  = errors.New("invalid request")
)

var classes = []struct {
	err  error
	code codes.Code
}{
	{errNotFound, codes.NotFound},
	{image.ErrNotFound, codes.NotFound},
	{errExists, codes.AlreadyExists},
	{errState, codes.FailedPrecondition},
	{errInvalid, codes.InvalidArgument},
	{image.ErrInvalid, codes.InvalidArgument},
	{image.ErrInUse, codes.FailedPrecondition},
	{image.ErrUnauthorized, codes.PermissionDenied},
	{context.DeadlineExceeded, codes.DeadlineExceeded},
	{context.Canceled, codes.Canceled},
}

// classify gives errors their gRPC codes.
func classify(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	resp, err := handler(ctx, req)
	return resp, coded(err)
}

func classifyStream(srv any, out grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	return coded(handler(srv, out))
}

func coded(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	for _, c := range classes {
		if errors.Is(err, c.err) {
			return status.Error(c.code, err.Error())
		}
	}
	return status.Error(codes.Unknown, err.Error())
}
