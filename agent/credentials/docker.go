package credentials

import (
	"encoding/base64"
	"encoding/json"
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
}

type dockerAuth struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	Auth          string `json:"auth"`
	IdentityToken string `json:"identitytoken"`
}

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
	key  string
	auth *runtimeapi.AuthConfig
}

// ordered lists matches, the most specific first: longer keys, then those without
// globs.
func ordered(found []match) []*runtimeapi.AuthConfig {
	slices.SortStableFunc(found, func(a, b match) int {
		if d := len(b.key) - len(a.key); d != 0 {
			return d
		}
		return strings.Count(a.key, "*") - strings.Count(b.key, "*")
	})
	var out []*runtimeapi.AuthConfig
	for _, f := range found {
		out = append(out, f.auth)
	}
	return out
}

// FromSecrets returns those of the secrets' entries that cover the image, the most
// specific first. Broken secrets are passed over, as Kubernetes does.
func FromSecrets(image string, secrets []*corev1.Secret) []*runtimeapi.AuthConfig {
	var list []dockerConfig
	for _, s := range secrets {
		var cfg dockerConfig
		switch s.Type {
		case corev1.SecretTypeDockerConfigJson:
			_ = json.Unmarshal(s.Data[corev1.DockerConfigJsonKey], &cfg)
		case corev1.SecretTypeDockercfg:
			_ = json.Unmarshal(s.Data[corev1.DockerConfigKey], &cfg.Auths)
		}
		list = append(list, cfg)
	}
	return fromDocker(image, list)
}

func fromDocker(image string, list []dockerConfig) []*runtimeapi.AuthConfig {
	registry, repository, ok := target(image)
	if !ok {
		return nil
	}
	var found []match
	for _, cfg := range list {
		for key, a := range cfg.Auths {
			if matches(key, repository) {
				found = append(found, match{key, a.config(registry)})
			}
		}
	}
	return ordered(found)
}

// fromFiles reads docker's configuration in the first folder that has one.
func fromFiles(image string, dirs []string) []*runtimeapi.AuthConfig {
	for _, dir := range dirs {
		var cfg dockerConfig
		if b, err := os.ReadFile(filepath.Join(dir, "config.json")); err == nil && json.Unmarshal(b, &cfg) == nil {
			return fromDocker(image, []dockerConfig{cfg})
		}
		if b, err := os.ReadFile(filepath.Join(dir, ".dockercfg")); err == nil && json.Unmarshal(b, &cfg.Auths) == nil {
			return fromDocker(image, []dockerConfig{cfg})
		}
	}
	return nil
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
