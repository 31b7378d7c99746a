// Package credentials finds what a node knows of image registries' users: in docker's
// configuration files, and from credential provider plugins, programs that are asked
// for an image: https://kubernetes.io/docs/tasks/administer-cluster/kubelet-credential-provider.
package credentials

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// apiVersion is that of requests and answers.
const apiVersion = "credentialprovider.kubelet.k8s.io/v1"

// How long the credentials of a plugin that was given a token are kept: see
// TokenAttributes.
const (
	cachePerToken   = "Token"
	cachePerAccount = "ServiceAccount"
)

// Config is a CredentialProviderConfig of kubelet.config.k8s.io/v1.
type Config struct {
	metav1.TypeMeta `json:",inline"`
	Providers       []Provider `json:"providers"`
}

// Provider says when a plugin is asked, and how.
type Provider struct {
	Name                 string           `json:"name"` // of the program
	MatchImages          []string         `json:"matchImages"`
	DefaultCacheDuration *metav1.Duration `json:"defaultCacheDuration"`
	APIVersion           string           `json:"apiVersion"`
	Args                 []string         `json:"args,omitempty"`
	Env                  []struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	} `json:"env,omitempty"`
	TokenAttributes *TokenAttributes `json:"tokenAttributes,omitempty"`
}

// TokenAttributes have a plugin be told of the pod's service account.
type TokenAttributes struct {
	Audience            string   `json:"serviceAccountTokenAudience"`
	CacheType           string   `json:"cacheType"` // Token or ServiceAccount
	Require             *bool    `json:"requireServiceAccount"`
	RequiredAnnotations []string `json:"requiredServiceAccountAnnotationKeys,omitempty"`
	OptionalAnnotations []string `json:"optionalServiceAccountAnnotationKeys,omitempty"`
}

// Load reads a configuration, or all of those of a folder in the order of their names;
// the programs must lie in bin.
func Load(path, bin string) (*Config, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("credential providers: %w", err)
	}
	files := []string{path}
	if info.IsDir() {
		files = nil
		for _, ext := range []string{"json", "yaml", "yml"} {
			found, err := filepath.Glob(filepath.Join(path, "*."+ext))
			if err != nil {
				return nil, err
			}
			files = append(files, found...)
		}
		slices.Sort(files)
	}
	all := &Config{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("credential providers: %w", err)
		}
		var c Config
		if err := yaml.UnmarshalStrict(b, &c); err != nil {
			return nil, fmt.Errorf("credential providers: %s: %w", f, err)
		}
		if c.Kind != "CredentialProviderConfig" || !strings.HasPrefix(c.APIVersion, "kubelet.config.k8s.io/v1") {
			return nil, fmt.Errorf("credential providers: %s is no CredentialProviderConfig of kubelet.config.k8s.io/v1", f)
		}
		all.Providers = append(all.Providers, c.Providers...)
	}
	return all, all.validate(bin)
}

func (c *Config) validate(bin string) error {
	var errs []error
	seen := map[string]bool{}
	for i := range c.Providers {
		p := &c.Providers[i]
		bad := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("credential provider %q: "+format, append([]any{p.Name}, args...)...))
		}
		switch {
		case p.Name == "" || strings.ContainsAny(p.Name, "/ ") || p.Name == "." || p.Name == "..":
			bad("its name must be that of a program")
			continue
		case seen[p.Name]:
			bad("it is there twice")
		}
		seen[p.Name] = true
		if info, err := os.Stat(filepath.Join(bin, p.Name)); err != nil {
			bad("%w", err)
		} else if info.IsDir() || info.Mode()&0o111 == 0 {
			bad("%s is no program", filepath.Join(bin, p.Name))
		}
		if len(p.MatchImages) == 0 {
			bad("matchImages must say for which images it is asked")
		}
		if p.DefaultCacheDuration == nil || p.DefaultCacheDuration.Duration < 0 {
			bad("defaultCacheDuration must be a duration that is not negative")
		}
		if p.APIVersion != apiVersion {
			bad("apiVersion %q: want %s", p.APIVersion, apiVersion)
		}
		if t := p.TokenAttributes; t != nil {
			if t.Audience == "" || t.Require == nil || t.CacheType != cachePerToken && t.CacheType != cachePerAccount {
				bad("tokenAttributes must have serviceAccountTokenAudience, requireServiceAccount and a cacheType of Token or ServiceAccount")
			} else if !*t.Require && len(t.RequiredAnnotations) > 0 {
				bad("requiredServiceAccountAnnotationKeys need requireServiceAccount")
			}
			for _, k := range t.RequiredAnnotations {
				if slices.Contains(t.OptionalAnnotations, k) {
					bad("annotation %s is both required and optional", k)
				}
			}
		}
	}
	return errors.Join(errs...)
}

// request is what a plugin reads.
type request struct {
	metav1.TypeMeta `json:",inline"`
	Image           string            `json:"image"`
	Token           string            `json:"serviceAccountToken,omitempty"`
	Annotations     map[string]string `json:"serviceAccountAnnotations,omitempty"`
}

// response is what it answers.
type response struct {
	metav1.TypeMeta `json:",inline"`
	CacheKeyType    string           `json:"cacheKeyType"` // Image, Registry or Global
	CacheDuration   *metav1.Duration `json:"cacheDuration,omitempty"`
	Auth            map[string]Auth  `json:"auth,omitempty"`
}

// Auth is a user of a registry.
type Auth struct {
	Username string `json:"username"`
	Password string `json:"password"`
}

// answerIn bounds a plugin's run, and how much it may say.
const (
	answerIn  = time.Minute
	maxAnswer = 1 << 20 // bytes
)
