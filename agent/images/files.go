package images

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	config "k8s.io/kubelet/config/v1alpha1"

	"knarr.dev/knarr/agent/checkpoint"
)

// Folders of records.
const (
	pullingDir = "pulling" // intents, one for each image that is being pulled
	pulledDir  = "pulled"  // records, one for each image that was pulled
)

// Kinds of files.
const (
	intentKind = "ImagePullIntent"
	recordKind = "ImagePulledRecord"
)

// fileName is where something is told of the image, or reference, that key is.
func fileName(key string) string {
	sum := sha256.Sum256([]byte(key))
	return "sha256-" + hex.EncodeToString(sum[:])
}

// typeOf says what a file is. Newer kubelets write the same as v1beta1.
func typeOf(kind string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: config.SchemeGroupVersion.String(), Kind: kind}
}

// checkType refuses files that say something else, or of something else.
func checkType(t metav1.TypeMeta, kind, key, file string) error {
	versions := []string{config.GroupName + "/v1alpha1", config.GroupName + "/v1beta1"}
	switch {
	case t.Kind != kind || !slices.Contains(versions, t.APIVersion):
		return fmt.Errorf("it is a %q of %q, not a %s of %s", t.Kind, t.APIVersion, kind, versions[0])
	case fileName(key) != file:
		return fmt.Errorf("it tells of %q, whose file is %s", key, fileName(key))
	}
	return nil
}

// load reads all that is told in a folder by take, which is given a file's name and
// content; broken is told what it refused.
func load(dir string, take func(file string, b []byte) error, broken func(file string, err error)) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("records of pulled images: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if !strings.HasPrefix(e.Name(), "sha256-") || e.IsDir() {
			continue // not ours
		}
		if strings.HasSuffix(e.Name(), ".new") { // it was being written: what it replaces holds
			if err := os.Remove(path); err != nil {
				return fmt.Errorf("records of pulled images: %w", err)
			}
			continue
		}
		b, err := os.ReadFile(path)
		if err == nil {
			err = take(e.Name(), b)
		}
		if err != nil {
			broken(e.Name(), err)
		}
	}
	return nil
}

// load reads what earlier runs have left.
func (r *records) load() error {
	intents := func(file string, b []byte) error {
		var i config.ImagePullIntent
		if err := json.Unmarshal(b, &i); err != nil {
			return err
		}
		if err := checkType(i.TypeMeta, intentKind, i.Image, file); err != nil {
			return err
		}
		r.left[file] = i.Image
		return nil
	}
	pulled := func(file string, b []byte) error {
		rec := &config.ImagePulledRecord{}
		if err := json.Unmarshal(b, rec); err != nil {
			return err
		}
		if err := checkType(rec.TypeMeta, recordKind, rec.ImageRef, file); err != nil {
			return err
		}
		r.pulled[rec.ImageRef] = rec
		return nil
	}
	err := load(filepath.Join(r.dir, pullingDir), intents, func(file string, err error) {
		r.left[file] = ""
		r.warn(filepath.Join(r.dir, pullingDir, file), err)
	})
	if err != nil {
		return err
	}
	return load(filepath.Join(r.dir, pulledDir), pulled, func(file string, err error) {
		r.broken[file] = true
		r.warn(filepath.Join(r.dir, pulledDir, file), err)
	})
}

// warn tells of a file that says nothing.
func (r *records) warn(path string, err error) {
	r.log.Error("a record of a pulled image cannot be read: pods that want the image have to show their credentials to its registry again; nothing is to be done, the next pull writes it anew",
		"file", path, "error", err)
}

// save writes a file; what it says is on the disk when save returns.
func (r *records) save(dir, key string, v any) error {
	if err := checkpoint.Save(filepath.Join(r.dir, dir, fileName(key)), v); err != nil {
		return fmt.Errorf("%w: make room on that disk, and let knarr write to it", err)
	}
	return nil
}

// remove takes a file away; one that stays is told in the log.
func (r *records) remove(dir, file string) {
	if err := os.Remove(filepath.Join(r.dir, dir, file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.log.Warn("a record of a pulled image could not be removed; pods may have to show their credentials again", "error", err)
	}
}
