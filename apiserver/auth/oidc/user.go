package oidc

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	authenticationv1 "k8s.io/api/authentication/v1"

	"knarr.dev/knarr/apiserver/auth"
)

// user maps verified claims to a user.
func (is *issuer) user(claims map[string]any) (*authenticationv1.UserInfo, error) {
	vars := map[string]any{"claims": claims}
	for i, r := range is.cfg.ClaimValidationRules {
		if p := is.claimRules[i]; p != nil {
			if err := holds(p, vars, r.Message, r.Expression); err != nil {
				return nil, err
			}
		} else if v, ok := claims[r.Claim].(string); !ok || v != r.RequiredValue {
			return nil, fmt.Errorf("claim %s must be %q", r.Claim, r.RequiredValue)
		}
	}
	u := &authenticationv1.UserInfo{}
	var err error
	m := &is.cfg.ClaimMappings
	if u.Username, err = is.name(claims, vars); err != nil {
		return nil, err
	}
	if u.Groups, err = texts(is.groups, m.Groups.Claim, deref(m.Groups.Prefix), claims, vars); err != nil {
		return nil, fmt.Errorf("groups: %w", err)
	}
	uid, err := texts(is.uid, m.UID.Claim, "", claims, vars)
	if err != nil {
		return nil, fmt.Errorf("uid: %w", err)
	}
	if len(uid) > 1 {
		return nil, errors.New("uid: want one string")
	}
	u.UID = strings.Join(uid, "")
	for i, e := range m.Extra {
		values, err := texts(is.extra[i], "", "", claims, vars)
		if err != nil {
			return nil, fmt.Errorf("extra %s: %w", e.Key, err)
		}
		if len(values) > 0 {
			setExtra(u, e.Key, values)
		}
	}
	if jti, ok := claims["jti"].(string); ok && jti != "" {
		setExtra(u, "authentication.kubernetes.io/credential-id", []string{"JTI=" + jti})
	}
	if err := is.valid(u); err != nil {
		return nil, err
	}
	if !slices.Contains(u.Groups, auth.GroupAuthenticated) {
		u.Groups = append(u.Groups, auth.GroupAuthenticated)
	}
	return u, nil
}

func setExtra(u *authenticationv1.UserInfo, key string, values []string) {
	if u.Extra == nil {
		u.Extra = map[string]authenticationv1.ExtraValue{}
	}
	u.Extra[key] = values
}

func (is *issuer) name(claims, vars map[string]any) (string, error) {
	m := &is.cfg.ClaimMappings.Username
	names, err := texts(is.username, m.Claim, deref(m.Prefix), claims, vars)
	if err != nil {
		return "", fmt.Errorf("username: %w", err)
	}
	if len(names) != 1 || names[0] == "" {
		return "", errors.New("username: the token has none")
	}
	if m.Claim == "email" {
		if verified, ok := claims["email_verified"]; ok && verified != true {
			return "", errors.New("username: email not verified")
		}
	}
	return names[0], nil
}

// valid asks the rules about the user.
func (is *issuer) valid(u *authenticationv1.UserInfo) error {
	extra := map[string]any{}
	for k, v := range u.Extra {
		extra[k] = []string(v)
	}
	vars := map[string]any{"user": map[string]any{"username": u.Username, "uid": u.UID, "groups": u.Groups, "extra": extra}}
	for i, r := range is.cfg.UserValidationRules {
		if err := holds(is.userRules[i], vars, r.Message, r.Expression); err != nil {
			return err
		}
	}
	return nil
}

func holds(p cel.Program, vars map[string]any, message, text string) error {
	v, _, err := p.Eval(vars)
	if err != nil {
		return fmt.Errorf("validation expression %q: %w", text, err)
	}
	if v == types.True {
		return nil
	}
	if message == "" {
		message = "it is not true"
	}
	return fmt.Errorf("validation expression %q failed: %s", text, message)
}

// texts evaluates an expression, or reads a claim and puts the prefix before
// each string. A missing claim is no string.
func texts(p cel.Program, claim, prefix string, claims, vars map[string]any) ([]string, error) {
	var value any
	switch {
	case p != nil:
		v, _, err := p.Eval(vars)
		if err != nil {
			return nil, err
		}
		value = native(v)
	case claim != "":
		value = claims[claim]
	}
	var out []string
	switch v := value.(type) {
	case nil:
	case string:
		if v != "" {
			out = append(out, prefix+v)
		}
	case []any:
		for _, x := range v {
			s, ok := x.(string)
			if !ok {
				return nil, fmt.Errorf("want strings, have a %T", x)
			}
			out = append(out, prefix+s)
		}
	default:
		return nil, fmt.Errorf("want a string or strings, have a %T", value)
	}
	return out, nil
}

// native turns an expression's value into strings and lists.
func native(v ref.Val) any {
	switch x := v.(type) {
	case types.String:
		return string(x)
	case types.Null:
		return nil
	}
	if l, ok := v.Value().([]ref.Val); ok {
		out := make([]any, len(l))
		for i := range l {
			out[i] = native(l[i])
		}
		return out
	}
	if l, ok := v.Value().([]string); ok {
		out := make([]any, len(l))
		for i := range l {
			out[i] = l[i]
		}
		return out
	}
	return v.Value()
}
