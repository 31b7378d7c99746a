// Package oidc recognises users by the JSON Web Tokens of other issuers, as the
// AuthenticationConfiguration of apiserver.config.k8s.io/v1 says. An issuer's keys
// are fetched when its first token comes, and again when a token names a key that
// is not known.
package oidc

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/google/cel-go/cel"
	"k8s.io/apimachinery/pkg/util/validation/field"
	apiserverv1 "k8s.io/apiserver/pkg/apis/apiserver/v1"
	"k8s.io/apiserver/pkg/cel/environment"

	"knarr.dev/knarr/apiserver/configfile"
)

// Load reads an AuthenticationConfiguration from a YAML file.
func Load(file string) (*apiserverv1.AuthenticationConfiguration, error) {
	c := &apiserverv1.AuthenticationConfiguration{}
	if err := configfile.Read(file, "authentication configuration", apiserverv1.SchemeGroupVersion.String(), "AuthenticationConfiguration", c); err != nil {
		return nil, err
	}
	return c, nil
}

// Authenticator checks the tokens of one or more issuers.
type Authenticator struct {
	issuers map[string]*issuer
	now     func() time.Time
}

// New prepares the issuers; nothing is fetched yet.
func New(list []apiserverv1.JWTAuthenticator, now func() time.Time) (*Authenticator, error) {
	a := &Authenticator{issuers: map[string]*issuer{}, now: now}
	for i := range list {
		path := field.NewPath("jwt").Index(i)
		if a.issuers[list[i].Issuer.URL] != nil {
			return nil, field.Duplicate(path.Child("issuer", "url"), list[i].Issuer.URL)
		}
		is, err := newIssuer(&list[i], path)
		if err != nil {
			return nil, err
		}
		is.now = now
		a.issuers[is.cfg.Issuer.URL] = is
	}
	return a, nil
}

func newIssuer(c *apiserverv1.JWTAuthenticator, path *field.Path) (*issuer, error) {
	is := &issuer{cfg: c}
	if errs := validate(c, path); len(errs) > 0 {
		return nil, errs.ToAggregate()
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}, Proxy: http.ProxyFromEnvironment, IdleConnTimeout: time.Minute}
	if ca := c.Issuer.CertificateAuthority; ca != "" {
		tr.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !tr.TLSClientConfig.RootCAs.AppendCertsFromPEM([]byte(ca)) {
			return nil, field.Invalid(path.Child("issuer", "certificateAuthority"), "<omitted>", "no PEM certificate in it")
		}
	}
	is.client = &http.Client{Transport: tr, Timeout: 10 * time.Second}
	return is, is.compile(path)
}

func validate(c *apiserverv1.JWTAuthenticator, path *field.Path) (errs field.ErrorList) {
	for name, u := range map[string]string{"url": c.Issuer.URL, "discoveryURL": deref(c.Issuer.DiscoveryURL)} {
		if u == "" && name == "discoveryURL" {
			continue
		}
		if p, err := url.Parse(u); err != nil || p.Scheme != "https" || p.Host == "" || p.User != nil || p.RawQuery != "" || p.Fragment != "" {
			errs = append(errs, field.Invalid(path.Child("issuer", name), u, "must be an https URL without user, query and fragment"))
		}
	}
	if len(c.Issuer.Audiences) == 0 {
		errs = append(errs, field.Required(path.Child("issuer", "audiences"), "at least one jwt.issuer.audiences is required"))
	}
	if len(c.Issuer.Audiences) > 1 && c.Issuer.AudienceMatchPolicy != apiserverv1.AudienceMatchPolicyMatchAny {
		errs = append(errs, field.Invalid(path.Child("issuer", "audienceMatchPolicy"), c.Issuer.AudienceMatchPolicy, "audienceMatchPolicy must be MatchAny for multiple audiences"))
	}
	m := &c.ClaimMappings
	switch {
	case m.Username.Claim == "" && m.Username.Expression == "":
		errs = append(errs, field.Required(path.Child("claimMappings", "username"), "claim or expression is required"))
	case m.Username.Claim != "" && m.Username.Expression != "":
		errs = append(errs, field.Invalid(path.Child("claimMappings", "username"), "", "claim and expression can't both be set"))
	case m.Username.Claim != "" && m.Username.Prefix == nil:
		errs = append(errs, field.Required(path.Child("claimMappings", "username", "prefix"), "prefix is required when claim is set. It can be set to an empty string to disable prefixing"))
	}
	if m.Groups.Claim != "" && m.Groups.Prefix == nil {
		errs = append(errs, field.Required(path.Child("claimMappings", "groups", "prefix"), "prefix is required when claim is set. It can be set to an empty string to disable prefixing"))
	}
	for i, e := range m.Extra {
		if e.Key != strings.ToLower(e.Key) || !strings.Contains(e.Key, "/") {
			errs = append(errs, field.Invalid(path.Child("claimMappings", "extra").Index(i).Child("key"), e.Key, "must be a lower-case domain-prefix path"))
		}
	}
	return errs
}

// Anonymous tells which paths requests without credentials may have; nil: none.
func Anonymous(c *apiserverv1.AnonymousAuthConfig) func(path string) bool {
	if c == nil || !c.Enabled {
		return nil
	}
	return func(path string) bool {
		return len(c.Conditions) == 0 || slices.ContainsFunc(c.Conditions, func(x apiserverv1.AnonymousAuthCondition) bool { return x.Path == path })
	}
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// compile prepares the expressions.
func (is *issuer) compile(path *field.Path) error {
	var env *cel.Env
	program := func(at *field.Path, text string) (cel.Program, error) {
		if text == "" {
			return nil, nil
		}
		if env == nil { // only who writes expressions pays for them
			base, err := environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion()).Env(environment.NewExpressions)
			if err != nil {
				return nil, err
			}
			if env, err = base.Extend(cel.Variable("claims", cel.MapType(cel.StringType, cel.DynType)), cel.Variable("user", cel.DynType)); err != nil {
				return nil, err
			}
		}
		ast, issues := env.Compile(text)
		if issues.Err() != nil {
			return nil, field.Invalid(at, text, "compilation failed: "+issues.Err().Error())
		}
		return env.Program(ast, cel.CostLimit(10_000_000))
	}
	m := &is.cfg.ClaimMappings
	at := path.Child("claimMappings")
	var errs []error
	add := func(p *cel.Program, at *field.Path, text string) {
		var err error
		if *p, err = program(at, text); err != nil {
			errs = append(errs, err)
		}
	}
	add(&is.username, at.Child("username", "expression"), m.Username.Expression)
	add(&is.groups, at.Child("groups", "expression"), m.Groups.Expression)
	add(&is.uid, at.Child("uid", "expression"), m.UID.Expression)
	is.extra = make([]cel.Program, len(m.Extra))
	for i := range m.Extra {
		add(&is.extra[i], at.Child("extra").Index(i).Child("valueExpression"), m.Extra[i].ValueExpression)
	}
	is.claimRules = make([]cel.Program, len(is.cfg.ClaimValidationRules))
	for i, r := range is.cfg.ClaimValidationRules {
		add(&is.claimRules[i], path.Child("claimValidationRules").Index(i).Child("expression"), r.Expression)
	}
	is.userRules = make([]cel.Program, len(is.cfg.UserValidationRules))
	for i, r := range is.cfg.UserValidationRules {
		add(&is.userRules[i], path.Child("userValidationRules").Index(i).Child("expression"), r.Expression)
	}
	return errors.Join(errs...)
}
