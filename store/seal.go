package store

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// Sealer encrypts values at rest with AES-256-GCM. The sealed form has the
// prefix that Kubernetes' aesgcm provider writes, and binds the value to its
// key in the store, so that values cannot be swapped. The first of several keys
// seals, all of them open.
type Sealer struct {
	aeads []cipher.AEAD
}

var sealPrefix = []byte("k8s:enc:aesgcm:v1:knarr:")

// OpenSealer reads the 32 byte key in file, making it at first use. Former keys
// are in files of the same name with a further suffix, such as FILE.1: what they
// sealed can be read as long as they are there.
func OpenSealer(file string) (*Sealer, error) {
	old, err := filepath.Glob(file + ".*")
	if err != nil {
		return nil, fmt.Errorf("encryption keys: %w", err)
	}
	slices.Sort(old)
	s := &Sealer{}
	for _, f := range append([]string{file}, old...) {
		key, err := os.ReadFile(f)
		if errors.Is(err, fs.ErrNotExist) && f == file {
			key, err = makeSealKey(file)
		}
		if err != nil {
			return nil, fmt.Errorf("encryption key: %w", err)
		}
		block, err := aes.NewCipher(key)
		if err != nil || len(key) != 32 {
			return nil, fmt.Errorf("encryption key %s: want 32 bytes, have %d: restore the file from a backup", f, len(key))
		}
		aead, err := cipher.NewGCM(block)
		if err != nil {
			return nil, fmt.Errorf("encryption key %s: %w", f, err)
		}
		s.aeads = append(s.aeads, aead)
	}
	return s, nil
}

func makeSealKey(file string) ([]byte, error) {
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return nil, err
	}
	return key, os.WriteFile(file, key, 0o600)
}

// Seal encrypts plain for storage under key.
func (s *Sealer) Seal(key string, plain []byte) ([]byte, error) {
	aead := s.aeads[0]
	n := aead.NonceSize()
	out := make([]byte, len(sealPrefix)+n, len(sealPrefix)+n+len(plain)+aead.Overhead())
	copy(out, sealPrefix)
	nonce := out[len(sealPrefix):]
	if _, err := rand.Read(nonce); err != nil {
		return nil, fmt.Errorf("seal %s: %w", key, err)
	}
	return aead.Seal(out, nonce, plain, []byte(key)), nil
}

// Open decrypts what Seal made; values that are not sealed are returned as they
// are, so that a store can be migrated by rewriting.
func (s *Sealer) Open(key string, sealed []byte) ([]byte, error) {
	plain, _, err := s.open(key, sealed)
	return plain, err
}

// Rotated tells that former keys are there: something may have to be sealed anew.
func (s *Sealer) Rotated() bool { return len(s.aeads) > 1 }

// Stale tells whether a value must be sealed anew: it is not sealed, or with a
// former key.
func (s *Sealer) Stale(key string, value []byte) bool {
	_, by, err := s.open(key, value)
	return err == nil && by != 0
}

// open returns also which of the keys it was, -1 for none.
func (s *Sealer) open(key string, sealed []byte) (plain []byte, by int, err error) {
	rest, ok := bytes.CutPrefix(sealed, sealPrefix)
	if !ok {
		return sealed, -1, nil
	}
	for i, aead := range s.aeads {
		n := aead.NonceSize()
		if len(rest) < n {
			return nil, 0, fmt.Errorf("open %s: sealed value is cut short", key)
		}
		if plain, err = aead.Open(nil, rest[:n], rest[n:], []byte(key)); err == nil {
			return plain, i, nil
		}
	}
	return nil, 0, fmt.Errorf("open %s: wrong encryption key or damaged value: %w", key, err)
}
