package credentials

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Credential opens a registry. One that neither came from a pull secret nor was given
// for a service account is the node's: every pod may use it.
type Credential struct {
	*runtimeapi.AuthConfig
	Secret  *Origin // the pull secret that holds it; nil: none does
	Account *Origin // the service account whose token a plugin was given; nil: it was given none
}

// Origin is the object that a credential came from.
type Origin struct {
	UID             types.UID
	Namespace, Name string
}

// Hash tells credentials apart without telling them: SHA-256, in hex.
func (c Credential) Hash() string {
	// Strings cannot fail to be encoded, and no two lists of them look the same.
	b, _ := json.Marshal([]string{c.ServerAddress, c.Username, c.Password, c.IdentityToken})
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Account is the service account for which a plugin may be asked for the image's
// credentials; nil if the pod has none or no plugin wants it.
func (k *Keyring) Account(ctx context.Context, image string, pod *corev1.Pod) (*Origin, error) {
	if pod == nil || pod.Spec.ServiceAccountName == "" || k.accounts == nil {
		return nil, nil
	}
	_, repository, ok := target(image)
	if !ok || !slices.ContainsFunc(k.providers, func(p Provider) bool { return p.TokenAttributes != nil && p.covers(repository) }) {
		return nil, nil
	}
	sa, err := k.accounts.Account(ctx, pod.Namespace, pod.Spec.ServiceAccountName)
	if err != nil {
		return nil, fmt.Errorf("service account %s/%s: %w", pod.Namespace, pod.Spec.ServiceAccountName, err)
	}
	return &Origin{UID: sa.UID, Namespace: sa.Namespace, Name: sa.Name}, nil
}

// covers tells whether the plugin is asked for images of a repository.
func (p *Provider) covers(repository string) bool {
	return slices.ContainsFunc(p.MatchImages, func(m string) bool { return matches(m, repository) })
}
