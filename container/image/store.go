package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"knarr.dev/knarr/container/snapshot"
)

// Store is the set of images on this machine.
type Store struct {
	// HostsDirs have the hosts files; see the variable of that name.
	HostsDirs  []string
	stall      time.Duration
	dir        string
	layers     *snapshot.Store
	registries Registries
	transport  *http.Transport
	partials   *partials
	log        *slog.Logger
	now        func() time.Time

	mu     sync.RWMutex
	images map[string]*Image // by ID
	pulls  map[string]*pull
	// leases are layers of images being pulled: the sweep leaves them alone.
	leases map[string]int
}

// Dial connects to a registry; nil stands for this process' own network.
type Dial func(ctx context.Context, network, addr string) (net.Conn, error)

// partialsDir holds the beginnings of layers.
const partialsDir = "partial"

// Open reads the images in dir.
func Open(dir string, layers *snapshot.Store, registries Registries, dial Dial, log *slog.Logger, now func() time.Time) (*Store, error) {
	s := &Store{
		HostsDirs: HostsDirs, stall: stallTime, dir: dir, layers: layers, registries: registries, transport: transportBy(dial), log: log, now: now,
		images: map[string]*Image{}, pulls: map[string]*pull{}, leases: map[string]int{},
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	var err error
	if s.partials, err = openPartials(filepath.Join(dir, partialsDir), now()); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.Name() == partialsDir {
			continue
		}
		p := filepath.Join(dir, e.Name())
		if !strings.HasSuffix(p, ".json") {
			_ = os.Remove(p) // half a write
			continue
		}
		data, err := os.ReadFile(p)
		if err != nil {
			return nil, err
		}
		i := &Image{}
		if err := json.Unmarshal(data, i); err != nil {
			return nil, fmt.Errorf("image record %s: %w: remove the file and pull the image again", p, err)
		}
		whole := true
		for _, l := range i.Layers {
			whole = whole && layers.Has(l)
		}
		if !whole {
			log.Warn("forgetting an image whose layers are not all there", "image", i.ID)
			_ = os.Remove(p)
			continue
		}
		s.images[i.ID] = i
	}
	return s, nil
}

// Get finds an image by ID, tag or digest.
func (s *Store) Get(ref string) (*Image, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.get(ref)
}

func (s *Store) get(ref string) (*Image, error) {
	if isID(ref) {
		id := "sha256:" + strings.TrimPrefix(ref, "sha256:")
		if i := s.images[id]; i != nil {
			return i, nil
		}
		var found *Image
		for _, i := range s.images {
			if strings.HasPrefix(i.ID, id) {
				if found != nil {
					return nil, fmt.Errorf("%w: %s is short for several images", ErrInvalid, ref)
				}
				found = i
			}
		}
		if found != nil {
			return found, nil
		}
	}
	full, err := Normalize(ref)
	if err != nil {
		return nil, err
	}
	for _, i := range s.images {
		if i.named(full) {
			return i, nil
		}
	}
	return nil, fmt.Errorf("image %q: %w", ref, ErrNotFound)
}

// List returns all images, oldest first.
func (s *Store) List() []*Image {
	s.mu.RLock()
	defer s.mu.RUnlock()
	list := make([]*Image, 0, len(s.images))
	for _, i := range s.images {
		list = append(list, i)
	}
	sort.Slice(list, func(a, b int) bool { return list[a].Created.Before(list[b].Created) })
	return list
}

// Remove forgets the image that ref names, with all of its names, and removes
// the layers that nothing refers to any more; inUse names images (by ID) whose
// layers must stay. An image that is not there is no error.
func (s *Store) Remove(ref string, inUse map[string]bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, err := s.get(ref)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if inUse[i.ID] {
		return fmt.Errorf("image %s is %w: remove the container first", ref, ErrInUse)
	}
	if err := os.Remove(s.record(i.ID)); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("removing image %s: %w", ref, err)
	}
	delete(s.images, i.ID)
	return s.sweep()
}

// sweep is mark and sweep over the layers; the caller holds the lock.
func (s *Store) sweep() error {
	keep := map[string]bool{}
	for _, i := range s.images {
		for _, l := range i.Layers {
			keep[l] = true
		}
	}
	for l := range s.leases {
		keep[l] = true
	}
	return s.layers.Sweep(keep)
}

func (s *Store) lease(layers []string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range layers {
		if s.leases[l] += n; s.leases[l] <= 0 {
			delete(s.leases, l)
		}
	}
}

func (s *Store) record(id string) string {
	return filepath.Join(s.dir, strings.TrimPrefix(id, "sha256:")+".json")
}

// add records an image under a tag and a digest (either may be empty), taking
// the tag away from any image that had it.
func (s *Store) add(id string, config *v1.ConfigFile, layers []string, tag, digest string) (*Image, error) {
	size := int64(0)
	for _, l := range layers {
		u, err := s.layers.Usage(l)
		if err != nil {
			return nil, err
		}
		size += u.Bytes
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.images[id]
	if i == nil {
		i = &Image{ID: id, Layers: layers, Size: size, Config: config.Config, Created: s.now()}
	}
	i = i.with(tag, digest)
	if err := s.save(i); err != nil {
		return nil, err
	}
	s.images[id] = i
	for _, other := range s.images {
		if tag != "" && other.ID != id && other.named(tag) {
			other = other.without(tag)
			if err := s.save(other); err != nil {
				return nil, err
			}
			s.images[other.ID] = other
		}
	}
	return i, nil
}

func (s *Store) save(i *Image) error {
	data, err := json.Marshal(i)
	if err != nil {
		return err
	}
	p := s.record(i.ID)
	if err := os.WriteFile(p+".tmp", data, 0o600); err != nil {
		return fmt.Errorf("recording image %s: %w", i.ID, err)
	}
	return os.Rename(p+".tmp", p)
}

// Folders returns the folders of an image's layers, topmost first, as overlay wants them.
func (s *Store) Folders(i *Image) []string {
	dirs := make([]string, 0, len(i.Layers))
	for n := len(i.Layers) - 1; n >= 0; n-- {
		dirs = append(dirs, s.layers.Path(i.Layers[n]))
	}
	return dirs
}
