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
)

// Sealer encrypts values at rest with AES-256-GCM. The sealed form has the
// prefix that Kubernetes' aesgcm provider writes, and binds the value to its
// key in the store, so that values cannot be swapped.
type Sealer struct {
	aead cipher.AEAD
}

var sealPrefix = []byte("k8s:enc:aesgcm:v1:knarr:")

// OpenSealer reads the 32 byte key in file, making it at first use.
func OpenSealer(file string) (*Sealer, error) {
	key, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		key = make([]byte, 32)
		if _, err := rand.Read(key); err != nil {
			return nil, fmt.Errorf("encryption key: %w", err)
		}
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return nil, fmt.Errorf("encryption key: %w", err)
		}
		err = os.WriteFile(file, key, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("encryption key: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil || len(key) != 32 {
		return nil, fmt.Errorf("encryption key %s: want 32 bytes, have %d: restore the file from a backup", file, len(key))
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("encryption key %s: %w", file, err)
	}
	return &Sealer{aead: aead}, nil
}

// Seal encrypts plain for storage under key.
func (s *Sealer) Seal(key string, plain []byte) ([]byte, error) {
	n := s.aead.NonceSize()
	out := make([]byte, len(sealPrefix)+n, len(sealPrefix)+n+len(plain)+s.aead.Overhead())
	copy(out, sealPrefix)
	nonce := out[len(sealPrefix):]
	if _, err := rand.Read(nonce); err != nil {
		return nil, fmt.Errorf("seal %s: %w", key, err)
	}
	return s.aead.Seal(out, nonce, plain, []byte(key)), nil
}

// Open decrypts what Seal made; values that are not sealed are returned as they
// are, so that a store can be migrated by rewriting.
func (s *Sealer) Open(key string, sealed []byte) ([]byte, error) {
	rest, ok := bytes.CutPrefix(sealed, sealPrefix)
	if !ok {
		return sealed, nil
	}
	n := s.aead.NonceSize()
	if len(rest) < n {
		return nil, fmt.Errorf("open %s: sealed value is cut short", key)
	}
	plain, err := s.aead.Open(nil, rest[:n], rest[n:], []byte(key))
	if err != nil {
		return nil, fmt.Errorf("open %s: wrong encryption key or damaged value: %w", key, err)
	}
	return plain, nil
}
