package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// message keeps a CRI message as JSON inside a record.
type message[M proto.Message] struct{ m M }

func (w message[M]) MarshalJSON() ([]byte, error) { return protojson.Marshal(w.m) }

func (w *message[M]) UnmarshalJSON(data []byte) error {
	w.m = w.m.ProtoReflect().New().Interface().(M)
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(data, w.m)
}

// podRecord is what is kept of a sandbox.
type podRecord struct {
	ID      string
	Config  message[*runtimeapi.PodSandboxConfig]
	Handler string
	Ready   bool
	// Unfinished: it is being made. Whoever finds it so after a crash removes it.
	Unfinished bool `json:",omitempty"`
	Created    time.Time
	IPs        []string
	Boot       string // of the machine; another one means that all is gone
	Pause      process
	Cgroup     string
}

// process identifies a process beyond its number.
type process struct {
	PID   int
	Start uint64
}

// containerRecord is what is kept of a container.
type containerRecord struct {
	ID, Pod string
	Config  message[*runtimeapi.ContainerConfig]
	// Unfinished: it is being made. Whoever finds it so after a crash removes it.
	Unfinished bool `json:",omitempty"`
	ImageID    string
	ImageRef   string
	Created    time.Time
	Started    time.Time
	Finished   time.Time
	ExitCode   int32
	Reason     string
	Message    string
	Boot       string
	Process    process
	TTY        bool
	Stop       string // the image's stop signal
	User       userRecord
	Cgroup     string
	LogPath    string
	Hooks      *specs.Hooks `json:",omitempty"` // that its devices want
}

type userRecord struct {
	UID, GID uint32
	Groups   []uint32
}

// save writes v so that a reader sees the old or the new content, never a part.
func save(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("recording %s: %w", path, err)
	}
	if err := os.WriteFile(path+".tmp", data, 0o600); err != nil {
		return fmt.Errorf("recording %s: %w", path, err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return fmt.Errorf("recording %s: %w", path, err)
	}
	return nil
}

func load(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("reading record %s: %w", path, err)
	}
	return nil
}

// bootID names this boot of the machine.
func bootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("reading the boot's identity: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}

func (s *Server) podRecord(id string) string { return filepath.Join(s.cfg.Root, "pods", id+".json") }

func (s *Server) containerDir(id string) string { return filepath.Join(s.cfg.Root, "containers", id) }

// containerUpper is the container's writable layer.
func (s *Server) containerUpper(id string) string { return filepath.Join(s.containerDir(id), "upper") }

func (s *Server) containerRecord(id string) string {
	return filepath.Join(s.containerDir(id), "state.json")
}

func (s *Server) pipeDir(id string) string { return filepath.Join(s.cfg.Run, "c", id) }

func (s *Server) nsDir(id string) string { return filepath.Join(s.cfg.Run, "ns", id) }

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
