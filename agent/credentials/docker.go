package credentials

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// dockerConfig is the content of docker's configuration and of a .dockerconfigjson
// secret; .dockercfg holds only the inner map.
type dockerConfig struct {
	Auths map[string]dockerAuth `json:"auths"`

	origin *Origin // the secret that holds it; nil: it is a file of the node
}

type dockerAuth struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	Auth          string `json:"auth"`
	IdentityToken string `json:"identitytoken"`
}

// config is the entry for a runtime; read has checked that auth can be decoded.
func (a dockerAuth) config(registry string) *runtimeapi.AuthConfig {
	auth := &runtimeapi.AuthConfig{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, ServerAddress: registry}
	if a.Auth != "" && a.Username == "" {
		if raw, err := base64.StdEncoding.DecodeString(a.Auth); err == nil {
			auth.Username, auth.Password, _ = strings.Cut(string(raw), ":")
		}
	}
	return auth
}

// target is an image's registry, and with it its repository; false if it is none.
func target(image string) (registry, repository string, ok bool) {
	ref, err := name.ParseReference(image, name.WeakValidation)
	if err != nil {
		return "", "", false
	}
	repo := ref.Context()
	registry = repo.RegistryStr()
	if registry == name.DefaultRegistry {
		registry = "docker.io"
	}
	return registry, registry + "/" + repo.RepositoryStr(), true
}

// match is an entry that covers an image.
type match struct {
	key        string
	credential Credential
}

// ordered lists matches, the most specific first: longer keys, then those without
// globs.
func ordered(found []match) []Credential {
	slices.SortStableFunc(found, func(a, b match) int {
		if d := len(b.key) - len(a.key); d != 0 {
			return d
		}
		return strings.Count(a.key, "*") - strings.Count(b.key, "*")
	})
	var out []Credential
	for _, f := range found {
		out = append(out, f.credential)
	}
	return out
}

// FromSecrets returns those of the secrets' entries that cover the image, the most
// specific first. The error names the secrets that cannot be read; what the others
// know is returned with it.
func FromSecrets(image string, secrets []*corev1.Secret) ([]Credential, error) {
	var list []dockerConfig
	var errs []error
	for _, s := range secrets {
		var cfg dockerConfig
		var err error
		switch s.Type {
		case corev1.SecretTypeDockerConfigJson:
			err = cfg.read(s.Data[corev1.DockerConfigJsonKey], &cfg)
		case corev1.SecretTypeDockercfg:
			err = cfg.read(s.Data[corev1.DockerConfigKey], &cfg.Auths)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("pull secret %s: %w", s.Name, err))
			continue
		}
		cfg.origin = &Origin{UID: s.UID, Namespace: s.Namespace, Name: s.Name}
		list = append(list, cfg)
	}
	return fromDocker(image, list), errors.Join(errs...)
}

// read fills into, which is c or a part of it, and checks what c is then.
func (c *dockerConfig) read(b []byte, into any) error {
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("it is no docker configuration: %w", err)
	}
	for key, a := range c.Auths {
		if _, err := base64.StdEncoding.DecodeString(a.Auth); err != nil {
			return fmt.Errorf("auths[%s].auth: %w", key, err)
		}
	}
	return nil
}

func fromDocker(image string, list []dockerConfig) []Credential {
	registry, repository, ok := target(image)
	if !ok {
		return nil
	}
	var found []match
	for _, cfg := range list {
		for key, a := range cfg.Auths {
			if matches(key, repository) {
				found = append(found, match{key, Credential{AuthConfig: a.config(registry), Secret: cfg.origin}})
			}
		}
	}
	return ordered(found)
}

// fromFiles reads docker's configuration in the first folder that has one.
func fromFiles(image string, dirs []string) ([]Credential, error) {
	for _, dir := range dirs {
		for _, name := range []string{"config.json", ".dockercfg"} {
			var cfg dockerConfig
			var into any = &cfg
			if name == ".dockercfg" {
				into = &cfg.Auths
			}
			file := filepath.Join(dir, name)
			b, err := os.ReadFile(file)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err == nil {
				err = cfg.read(b, into)
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
			return fromDocker(image, []dockerConfig{cfg}), nil
		}
	}
	return nil, nil
}

// matches tells whether a key (host[:port][/path], each label of the host may be a
// glob) covers registry/repository.
func matches(key, target string) bool {
	key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	key = strings.TrimSuffix(key, "/")
	host, prefix, _ := strings.Cut(key, "/")
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		host = "docker.io"
	}
	if prefix == "v1" || prefix == "v2" {
		prefix = ""
	}
	thost, tpath, _ := strings.Cut(target, "/")
	a, b := strings.Split(host, "."), strings.Split(thost, ".")
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if ok, err := path.Match(a[i], b[i]); err != nil || !ok {
			return false
		}
	}
	return prefix == "" || tpath == prefix || strings.HasPrefix(tpath, prefix+"/")
}
