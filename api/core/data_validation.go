package core

import (
	"encoding/json"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
)

const immutableData = "field is immutable when `immutable` is set"

var dataPath, binaryDataPath = field.NewPath("data"), field.NewPath("binaryData")

func validateConfigMap(c *corev1.ConfigMap) field.ErrorList {
	keys, binary := map[string]int{}, map[string]int{}
	var errs errorList
	for k, v := range c.Data {
		keys[k] = len(v)
		if _, ok := c.BinaryData[k]; ok {
			errs = append(errs, field.Invalid(field.NewPath("data").Key(k), k, "duplicate of key present in binaryData"))
		}
	}
	for k, v := range c.BinaryData {
		binary[k] = len(v)
	}
	keyErrs, size := checkKeys(dataPath, keys)
	errs = append(errs, keyErrs...)
	keyErrs, more := checkKeys(binaryDataPath, binary)
	errs = append(errs, keyErrs...)
	if size+more > corev1.MaxSecretSize {
		errs = append(errs, field.TooLong(field.NewPath(""), "", corev1.MaxSecretSize))
	}
	return errs
}

func validateConfigMapUpdate(c, old *corev1.ConfigMap) field.ErrorList {
	var errs errorList
	if old.Immutable != nil && *old.Immutable {
		if c.Immutable == nil || !*c.Immutable {
			errs = append(errs, field.Forbidden(field.NewPath("immutable"), immutableData))
		}
		if !check.Same(c.Data, old.Data) {
			errs = append(errs, field.Forbidden(field.NewPath("data"), immutableData))
		}
		if !check.Same(c.BinaryData, old.BinaryData) {
			errs = append(errs, field.Forbidden(field.NewPath("binaryData"), immutableData))
		}
	}
	return append(errs, validateConfigMap(c)...)
}

func validateSecret(s *corev1.Secret) field.ErrorList {
	keys := map[string]int{}
	for k, v := range s.Data {
		keys[k] = len(v)
	}
	errs, size := checkKeys(dataPath, keys)
	if size > corev1.MaxSecretSize {
		errs = append(errs, field.TooLong(dataPath, "", corev1.MaxSecretSize))
	}
	return append(errs, checkSecretType(s, dataPath)...)
}

// checkSecretType asks for the keys that a type promises to its readers.
func checkSecretType(s *corev1.Secret, data *field.Path) errorList {
	require := func(keys ...string) (errs errorList) {
		for _, k := range keys {
			if _, ok := s.Data[k]; !ok {
				errs = append(errs, field.Required(data.Key(k), ""))
			}
		}
		return errs
	}
	object := func(key string) errorList {
		if errs := require(key); len(errs) > 0 {
			return errs
		}
		if err := json.Unmarshal(s.Data[key], &map[string]any{}); err != nil {
			return errorList{field.Invalid(data.Key(key), "<secret contents redacted>", err.Error())}
		}
		return nil
	}
	switch s.Type {
	case corev1.SecretTypeServiceAccountToken:
		if s.Annotations[corev1.ServiceAccountNameKey] == "" {
			return errorList{field.Required(field.NewPath("metadata", "annotations").Key(corev1.ServiceAccountNameKey), "")}
		}
	case corev1.SecretTypeDockercfg:
		return object(corev1.DockerConfigKey)
	case corev1.SecretTypeDockerConfigJson:
		return object(corev1.DockerConfigJsonKey)
	case corev1.SecretTypeBasicAuth:
		if errs := require(corev1.BasicAuthUsernameKey, corev1.BasicAuthPasswordKey); len(errs) == 2 {
			return errs
		}
	case corev1.SecretTypeSSHAuth:
		if len(s.Data[corev1.SSHAuthPrivateKey]) == 0 {
			return errorList{field.Required(data.Key(corev1.SSHAuthPrivateKey), "")}
		}
	case corev1.SecretTypeTLS:
		return require(corev1.TLSCertKey, corev1.TLSPrivateKeyKey)
	}
	return nil
}

func validateSecretUpdate(s, old *corev1.Secret) field.ErrorList {
	errs := check.Immutable(field.NewPath("type"), s.Type, old.Type)
	if old.Immutable != nil && *old.Immutable {
		if s.Immutable == nil || !*s.Immutable {
			errs = append(errs, field.Forbidden(field.NewPath("immutable"), immutableData))
		}
		if !check.Same(s.Data, old.Data) {
			errs = append(errs, field.Forbidden(field.NewPath("data"), immutableData))
		}
	}
	return append(errs, validateSecret(s)...)
}

func validateServiceAccount(s *corev1.ServiceAccount) field.ErrorList {
	var errs errorList
	for i, ref := range s.ImagePullSecrets {
		if ref.Name != "" {
			errs = append(errs, check.DNSSubdomain(field.NewPath("imagePullSecrets").Index(i).Child("name"), ref.Name)...)
		}
	}
	return errs
}

func validateNamespace(n *corev1.Namespace) field.ErrorList {
	var errs errorList
	for _, f := range n.Spec.Finalizers {
		errs = append(errs, check.Finalizer(field.NewPath("spec", "finalizers"), string(f))...)
	}
	return errs
}

func validateNamespaceUpdate(n, _ *corev1.Namespace) field.ErrorList { return validateNamespace(n) }

func validateNamespaceStatus(n, _ *corev1.Namespace) field.ErrorList {
	want, at := corev1.NamespaceActive, field.NewPath("status", "Phase")
	why := "may only be 'Active' if `deletionTimestamp` is empty"
	if n.DeletionTimestamp != nil {
		want, why = corev1.NamespaceTerminating, "may only be 'Terminating' if `deletionTimestamp` is not empty"
	}
	if n.Status.Phase != want {
		return errorList{field.Invalid(at, n.Status.Phase, why)}
	}
	return nil
}
