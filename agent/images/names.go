package images

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"path"
	"sort"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// checkName refuses what is no image reference.
func checkName(image string) error {
	if _, err := name.ParseReference(image, name.WeakValidation); err != nil {
		return fmt.Errorf("couldn't parse image name %q: invalid reference format", image)
	}
	return nil
}

// withTag makes the default tag explicit.
func withTag(image string) string {
	if strings.Contains(image, "@") {
		return image
	}
	if i := strings.LastIndexByte(image, '/'); strings.Contains(image[i+1:], ":") {
		return image
	}
	return image + ":latest"
}

// dockerConfig is the content of a .dockerconfigjson secret; .dockercfg holds
// only the inner map.
type dockerConfig struct {
	Auths map[string]dockerAuth `json:"auths"`
}

type dockerAuth struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	Auth          string `json:"auth"`
	IdentityToken string `json:"identitytoken"`
}

// credentials returns those of the secrets' entries that match the image, the
// most specific entry first. Broken secrets are passed over, as Kubernetes does.
func credentials(image string, secrets []*corev1.Secret) []*runtimeapi.AuthConfig {
	ref, err := name.ParseReference(image, name.WeakValidation)
	if err != nil {
		return nil
	}
	repo := ref.Context()
	registry := repo.RegistryStr()
	if registry == name.DefaultRegistry {
		registry = "docker.io"
	}
	target := registry + "/" + repo.RepositoryStr()
	type match struct {
		key  string
		auth *runtimeapi.AuthConfig
	}
	var found []match
	for _, s := range secrets {
		var cfg dockerConfig
		switch s.Type {
		case corev1.SecretTypeDockerConfigJson:
			_ = json.Unmarshal(s.Data[corev1.DockerConfigJsonKey], &cfg)
		case corev1.SecretTypeDockercfg:
			_ = json.Unmarshal(s.Data[corev1.DockerConfigKey], &cfg.Auths)
		}
		for key, a := range cfg.Auths {
			if !matches(key, target) {
				continue
			}
			auth := &runtimeapi.AuthConfig{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, ServerAddress: registry}
			if a.Auth != "" && a.Username == "" {
				if raw, err := base64.StdEncoding.DecodeString(a.Auth); err == nil {
					auth.Username, auth.Password, _ = strings.Cut(string(raw), ":")
				}
			}
			found = append(found, match{key, auth})
		}
	}
	sort.SliceStable(found, func(i, j int) bool { return len(found[i].key) > len(found[j].key) })
	var out []*runtimeapi.AuthConfig
	for _, f := range found {
		out = append(out, f.auth)
	}
	return out
}

// matches tells whether a configuration key (host[:port][/path], each label of
// the host may be a glob) covers registry/repository.
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
