package external

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"slices"
	"time"
)

// Features are what a program can do beyond the ordinary.
type Features struct {
	// RecursiveReadOnly: it can make mounts read-only with all that is on them.
	RecursiveReadOnly bool
}

// Installed reports whether the program is there.
func (r *Runtime) Installed() bool { return r.conf.Installed() }

// Features asks the program, once as long as its file is the same; one that does not
// know the question has none of them.
func (r *Runtime) Features(ctx context.Context) Features {
	path, at := r.program()
	if path == "" {
		return Features{}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !at.Equal(r.asked) {
		r.features, r.asked = ask(ctx, path), at
	}
	return r.features
}

// Known is what Features would answer without asking, if the program has been asked.
func (r *Runtime) Known() (f Features, ok bool) {
	_, at := r.program()
	if !r.mu.TryLock() { // it is being asked
		return Features{}, false
	}
	defer r.mu.Unlock()
	if !at.Equal(r.asked) {
		return Features{}, false
	}
	return r.features, true
}

// program is the file and when it was changed; an empty path: there is none.
func (r *Runtime) program() (path string, at time.Time) {
	path, err := exec.LookPath(r.conf.Path)
	if err != nil {
		return "", at
	}
	st, err := os.Stat(path)
	if err != nil {
		return "", at
	}
	return path, st.ModTime()
}

func ask(ctx context.Context, path string) Features {
	out, err := exec.CommandContext(ctx, path, "features").Output()
	var f struct {
		MountOptions []string `json:"mountOptions"`
	}
	if err != nil || json.Unmarshal(out, &f) != nil {
		return Features{}
	}
	return Features{RecursiveReadOnly: slices.Contains(f.MountOptions, "rro")}
}
