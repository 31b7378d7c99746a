package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// Store keeps layers, one folder for each content digest:
//
//	layers/<digest>/fs     the files
//	layers/<digest>/usage  JSON of Usage
//	tmp/                   unfinished work, emptied at start
//
// A folder under layers/ is complete: it is renamed there as the last step.
type Store struct {
	dir string

	mu      sync.Mutex
	pending map[string]*unpacking
}

type unpacking struct {
	done chan struct{}
	err  error
}

// Open prepares the store in dir, removing what an earlier process left unfinished.
func Open(dir string) (*Store, error) {
	s := &Store{dir: dir, pending: map[string]*unpacking{}}
	if err := os.RemoveAll(s.tmp()); err != nil {
		return nil, fmt.Errorf("removing unfinished layers: %w", err)
	}
	for _, d := range []string{s.tmp(), filepath.Join(dir, "layers")} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *Store) tmp() string { return filepath.Join(s.dir, "tmp") }

// Dir holds the folders of all layers.
func (s *Store) Dir() string { return filepath.Join(s.dir, "layers") }

func (s *Store) layer(diffID string) string {
	return filepath.Join(s.dir, "layers", strings.TrimPrefix(diffID, "sha256:"))
}

// Path is the folder of a layer's files.
func (s *Store) Path(diffID string) string { return filepath.Join(s.layer(diffID), "fs") }

// Has reports whether the layer is complete.
func (s *Store) Has(diffID string) bool {
	_, err := os.Stat(s.layer(diffID))
	return err == nil
}

// Usage reads what a layer holds.
func (s *Store) Usage(diffID string) (Usage, error) {
	var u Usage
	data, err := os.ReadFile(filepath.Join(s.layer(diffID), "usage"))
	if err == nil {
		err = json.Unmarshal(data, &u)
	}
	if err != nil {
		return u, fmt.Errorf("reading the usage of layer %s: %w", diffID, err)
	}
	return u, nil
}

// Add makes the layer whose uncompressed content has the digest diffID. open
// gives its bytes: gzip, zstd or plain. Concurrent calls for one layer are
// joined; a layer that is there already is not opened.
func (s *Store) Add(ctx context.Context, diffID string, open func() (io.ReadCloser, error)) error {
	if !validDigest(diffID) {
		return fmt.Errorf("layer digest %q is not of the form sha256:<64 hexadecimal digits>", diffID)
	}
	for {
		s.mu.Lock()
		if s.Has(diffID) {
			s.mu.Unlock()
			return nil
		}
		other := s.pending[diffID]
		if other == nil {
			mine := &unpacking{done: make(chan struct{})}
			s.pending[diffID] = mine
			s.mu.Unlock()
			mine.err = s.add(ctx, diffID, open)
			s.mu.Lock()
			delete(s.pending, diffID)
			s.mu.Unlock()
			close(mine.done)
			return mine.err
		}
		s.mu.Unlock()
		select {
		case <-other.done:
			// Its failure may be its caller's alone (a cancelled pull): try ourselves.
			if other.err == nil {
				return nil
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func validDigest(d string) bool {
	h, ok := strings.CutPrefix(d, "sha256:")
	if !ok || len(h) != 64 {
		return false
	}
	_, err := hex.DecodeString(h)
	return err == nil
}

func (s *Store) add(ctx context.Context, diffID string, open func() (io.ReadCloser, error)) (err error) {
	tmp, err := os.MkdirTemp(s.tmp(), "layer-")
	if err != nil {
		return fmt.Errorf("making a folder for layer %s: %w", diffID, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	fs := filepath.Join(tmp, "fs")
	if err := os.Mkdir(fs, 0o755); err != nil {
		return err
	}
	body, err := open()
	if err != nil {
		return fmt.Errorf("opening layer %s: %w", diffID, err)
	}
	defer body.Close()
	stop := context.AfterFunc(ctx, func() { body.Close() })
	defer stop()
	raw := &contextReader{ctx, body}
	plain, err := Decompress(raw)
	if err != nil {
		return fmt.Errorf("layer %s: %w", diffID, err)
	}
	defer plain.Close()
	hash := sha256.New()
	stream := io.TeeReader(plain, hash)
	usage, err := Unpack(fs, stream)
	if err != nil {
		return fmt.Errorf("layer %s: %w", diffID, err)
	}
	// To the end: what follows the archive is part of both digests.
	if _, err := io.Copy(io.Discard, stream); err != nil {
		return fmt.Errorf("reading the end of layer %s: %w", diffID, err)
	}
	if _, err := io.Copy(io.Discard, raw); err != nil {
		return fmt.Errorf("reading the end of layer %s: %w", diffID, err)
	}
	if got := "sha256:" + hex.EncodeToString(hash.Sum(nil)); got != diffID {
		return fmt.Errorf("layer %s is corrupt: its content has the digest %s", diffID, got)
	}
	data, err := json.Marshal(usage)
	if err == nil {
		err = os.WriteFile(filepath.Join(tmp, "usage"), data, 0o600)
	}
	if err == nil {
		err = os.Chmod(tmp, 0o711)
	}
	if err == nil {
		err = os.Rename(tmp, s.layer(diffID))
	}
	return err
}

// Decompress recognises gzip and zstd by their first bytes; anything else is
// taken as it is.
func Decompress(r io.Reader) (io.ReadCloser, error) {
	head := make([]byte, 4)
	n, err := io.ReadFull(r, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, err
	}
	head = head[:n]
	whole := io.MultiReader(strings.NewReader(string(head)), r)
	switch {
	case n >= 2 && head[0] == 0x1f && head[1] == 0x8b:
		return gzip.NewReader(whole)
	case n == 4 && string(head) == "\x28\xb5\x2f\xfd":
		z, err := zstd.NewReader(whole, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(256<<20))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(whole), nil
}

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// Sweep removes every layer that is not in keep.
func (s *Store) Sweep(keep map[string]bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	entries, err := os.ReadDir(filepath.Join(s.dir, "layers"))
	if err != nil {
		return fmt.Errorf("listing layers: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if keep["sha256:"+e.Name()] {
			continue
		}
		// Out of sight first, so that a half-removed layer is never found.
		grave, err := os.MkdirTemp(s.tmp(), "swept-")
		if err == nil {
			err = os.Rename(filepath.Join(s.dir, "layers", e.Name()), filepath.Join(grave, "layer"))
		}
		errs = append(errs, err, os.RemoveAll(grave))
	}
	return errors.Join(errs...)
}

// DiskUsage sums what the folder holds on disk, as du does.
func DiskUsage(dir string) (bytes, inodes uint64) {
	_ = filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil && unix.Lstat(p, &st) == nil {
			bytes += uint64(st.Blocks) * 512
			inodes++
		}
		return nil
	})
	return bytes, inodes
}

// Inherit gives the folders that a layer passes through without describing
// them the owner and mode that they have in the layers below; chain lists an
// image's layers, lowest first. In the merged tree the topmost folder counts.
func (s *Store) Inherit(chain []string) error {
	for n, id := range chain {
		u, err := s.Usage(id)
		if err != nil {
			return err
		}
		for _, name := range u.Implied {
			for below := n - 1; below >= 0; below-- {
				var st unix.Stat_t
				if unix.Lstat(filepath.Join(s.Path(chain[below]), name), &st) != nil {
					continue
				}
				if st.Mode&unix.S_IFMT != unix.S_IFDIR {
					break
				}
				own := filepath.Join(s.Path(id), name)
				if err := os.Lchown(own, int(st.Uid), int(st.Gid)); err != nil {
					return fmt.Errorf("giving %s of layer %s its owner: %w", name, id, err)
				}
				if err := unix.Chmod(own, st.Mode&0o7777); err != nil {
					return fmt.Errorf("giving %s of layer %s its mode: %w", name, id, err)
				}
				break
			}
		}
	}
	return nil
}
