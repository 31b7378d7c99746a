package cmd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"knarr.dev/knarr/agent/metrics"
	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/client"
	"knarr.dev/knarr/client/remote"
	"knarr.dev/knarr/kit/lean"
	"knarr.dev/knarr/kit/pki"
)

func agentCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "agent",
		Short: "Run this machine as a node of a cluster that runs elsewhere",
		Long: `Run the node's part alone: agent, container runtime and data path. The API is
reached with a kubeconfig, with a bootstrap token (--bootstrap-kubeconfig), or
with --server, --certificate-authority and --token-file, as the user system:node:NAME of the group system:nodes. Containers
go on when it ends.`,
		Args: cobra.NoArgs,
	}
	c.AddCommand(accessCommand())
	f := c.Flags()
	d := defaultConfig()
	kubeconfig := f.String("kubeconfig", "", "access to the API server")
	bootstrap := f.String("bootstrap-kubeconfig", "", "access with a bootstrap token, by which the node asks for certificates of its own; they are renewed in time")
	load := instanceFlags(c)
	server := f.String("server", "", "address of the API server; overrides the kubeconfig's")
	ca := f.String("certificate-authority", "", "file with the certificate authority of the API server")
	token := f.String("token-file", "", "file with a bearer token for the API server")
	cert := f.String("tls-cert-file", "", "certificate of the agent's own server; empty: the client certificate")
	key := f.String("tls-private-key-file", "", "key of tls-cert-file")
	name := f.String("node-name", d.Node.Name, "name of this node")
	ip := f.String("node-ip", d.Node.IP, "address of this node")
	listen := f.String("node-listen", d.Node.Listen, "address of the node agent")
	nodePods := f.String("node-pod-cidr", "", "addresses of this node's pods, within pod-cidr")
	kubelet := kubeletFlags(f)
	pods := f.String("pod-cidr", d.Network.PodCIDR, "addresses of the cluster's pods")
	services := f.String("service-cidr", d.Network.ServiceCIDR, "addresses of services")
	c.RunE = func(c *cobra.Command, _ []string) error {
		cfg, err := load()
		if err != nil {
			return err
		}
		cfg.API.Kubeconfig = ""
		for flag, apply := range map[string]func(){
			"kubeconfig":            func() { cfg.Join.Kubeconfig = *kubeconfig },
			"bootstrap-kubeconfig":  func() { cfg.Join.BootstrapKubeconfig = *bootstrap },
			"server":                func() { cfg.Join.Server = *server },
			"certificate-authority": func() { cfg.Join.CAFile = *ca },
			"token-file":            func() { cfg.Join.TokenFile = *token },
			"tls-cert-file":         func() { cfg.Join.CertFile = *cert },
			"tls-private-key-file":  func() { cfg.Join.KeyFile = *key },
			"node-name":             func() { cfg.Node.Name = *name },
			"node-ip":               func() { cfg.Node.IP = *ip },
			"node-listen":           func() { cfg.Node.Listen = *listen },
			"node-pod-cidr":         func() { cfg.Network.NodePodCIDR = *nodePods },
			"pod-cidr":              func() { cfg.Network.PodCIDR = *pods },
			"service-cidr":          func() { cfg.Network.ServiceCIDR = *services },
		} {
			if f.Changed(flag) {
				apply()
			}
		}
		if err := kubelet(cfg); err != nil {
			return err
		}
		if err := cfg.validate(); err != nil {
			return err
		}
		if os.Geteuid() != 0 {
			return errors.New("knarr agent must run as root: it makes namespaces, mounts and control groups")
		}
		ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		return runAgent(ctx, cfg, parentOf())
	}
	return c
}

// runAgent runs a node until ctx or its parent ends.
func runAgent(ctx context.Context, cfg *Config, p *parent) error {
	log := logger(cfg.LogLevel, os.Stderr)
	ctx, stop := p.context(ctx)
	defer stop()
	if err := cfg.makeDirs(); err != nil {
		return err
	}
	rc, acc, err := cfg.access(ctx, p.dial(), log)
	if err != nil {
		return err
	}
	requests := metrics.NewRequests()
	rc.Wrap(requests.Wrap)
	n, err := openNode(ctx, cfg, p.dial(), log)
	if err != nil {
		return err
	}
	defer n.close()
	defer os.Remove(cfg.pidFile())
	if !p.await(ctx) {
		return nil
	}
	cl, err := remote.New(ctx, rc, log)
	if err != nil {
		return err
	}
	defer cl.Close()
	acc.client, acc.remote, acc.requests = cl, true, requests
	if pair, err := tls.X509KeyPair(rc.CertData, rc.KeyData); err == nil { // else a token says who it is, or it is renewed
		acc.cert = func() *x509.Certificate { return pair.Leaf }
	}
	acc.authorize = (&reviewer{client: cl, node: cfg.Node.Name, now: time.Now, tokens: &tokenReviewer{client: cl, now: time.Now}}).authorize
	g, ctx := errgroup.WithContext(ctx)
	if err := n.run(ctx, g, acc); err != nil {
		g.Go(func() error { return err })
	}
	spare(log)
	g.Go(func() error { lean.Keep(ctx, log); return nil })
	return g.Wait()
}

// access is how the node uses the API, and what its own server shows.
func (c *Config) access(ctx context.Context, dial func(context.Context, string, string) (net.Conn, error), log *slog.Logger) (*rest.Config, access, error) {
	if c.Join.BootstrapKubeconfig == "" {
		rc, err := c.Join.rest()
		if err != nil {
			return nil, access{}, err
		}
		rc.Dial = dial
		acc, err := c.Join.serving(rc, log)
		return rc, acc, err
	}
	rc, acc, err := c.enroll(ctx, dial, log)
	if err != nil || c.Join.CertFile == "" {
		return rc, acc, err
	}
	s, err := c.Join.servingFiles(log)
	if err == nil {
		acc.serving = shows(s)
	}
	return rc, acc, err
}

// rest is the access to the API.
func (j *JoinConfig) rest() (*rest.Config, error) {
	if j.Kubeconfig != "" {
		rc, err := clientcmd.BuildConfigFromFlags(j.Server, j.Kubeconfig)
		if err != nil {
			return nil, fmt.Errorf("join.kubeconfig %s: %w", j.Kubeconfig, err)
		}
		return rc, rest.LoadTLSFiles(rc)
	}
	if j.Server == "" || j.CAFile == "" {
		return nil, errors.New("no way to the cluster: give --kubeconfig, --bootstrap-kubeconfig, or --server with --certificate-authority and --token-file")
	}
	rc := &rest.Config{Host: j.Server, BearerTokenFile: j.TokenFile, TLSClientConfig: rest.TLSClientConfig{CAFile: j.CAFile}}
	if err := rest.LoadTLSFiles(rc); err != nil {
		return nil, fmt.Errorf("join.caFile: %w", err)
	}
	return rc, nil
}

// shows is what a server shows of a source.
func shows(s *pki.Source) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.Certificate(), nil }
}

// servingFiles is a certificate from files, read again when they change.
func (j *JoinConfig) servingFiles(log *slog.Logger) (*pki.Source, error) {
	return pki.Files(j.CertFile, j.KeyFile, time.Now, func(err error) {
		log.Error("the certificate of the agent's server could not be read again: the former one serves on", "error", err)
	})
}

// serving is what the agent's own server shows, and whom it knows.
func (j *JoinConfig) serving(rc *rest.Config, log *slog.Logger) (acc access, err error) {
	if j.CertFile != "" {
		var s *pki.Source
		if s, err = j.servingFiles(log); err == nil {
			acc.serving = shows(s)
		}
	} else {
		var pair tls.Certificate
		pair, err = tls.X509KeyPair(rc.CertData, rc.KeyData)
		acc.serving = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	if err != nil {
		return acc, fmt.Errorf("certificate of the agent's server: %w: give --tls-cert-file and --tls-private-key-file", err)
	}
	acc.clients = x509.NewCertPool()
	if !acc.clients.AppendCertsFromPEM(rc.CAData) {
		return acc, errors.New("the cluster's certificate authority is missing: give it in the kubeconfig or with --certificate-authority")
	}
	return acc, nil
}

// How long the API's verdict on a user of the kubelet API is trusted, as kubelets
// do.
const (
	allowedFor   = 5 * time.Minute
	forbiddenFor = 30 * time.Second
	maxVerdicts  = 1024
)

// reviewer asks the API who may use this node's agent.
type reviewer struct {
	client client.Interface
	node   string
	now    func() time.Time
	tokens *tokenReviewer

	mu       sync.Mutex
	verdicts map[string]verdict // by user, verb and subresource
}

type verdict struct {
	err   error
	until time.Time
}

// authorize lets those use the kubelet API who may use the node's subresources.
func (v *reviewer) authorize(r *http.Request) error {
	user, err := kubeletUser(r, v.tokens.user)
	if err != nil {
		return err
	}
	if slices.Contains(user.Groups, auth.GroupMasters) {
		return nil
	}
	verb, subresources := kubeletAccess(r)
	var known verdict
	for _, sub := range subresources {
		if known, err = v.verdict(r.Context(), user, verb, sub); err != nil || known.err == nil {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("ask the API server who may use node %s: %w", v.node, err)
	}
	return known.err
}

// verdict is the API's, asked anew when the last one is too old.
func (v *reviewer) verdict(ctx context.Context, user *authenticationv1.UserInfo, verb, sub string) (verdict, error) {
	key := user.Username + "\x00" + verb + "\x00" + sub
	v.mu.Lock()
	known, ok := v.verdicts[key]
	v.mu.Unlock()
	if ok && v.now().Before(known.until) {
		return known, nil
	}
	known, err := v.ask(ctx, user, verb, sub)
	if err != nil {
		return known, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.verdicts == nil || len(v.verdicts) >= maxVerdicts {
		v.verdicts = map[string]verdict{}
	}
	v.verdicts[key] = known
	return known, nil
}

func (v *reviewer) ask(ctx context.Context, user *authenticationv1.UserInfo, verb, sub string) (verdict, error) {
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: user.Username, Groups: user.Groups, UID: user.UID,
		ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: verb, Version: "v1", Resource: "nodes", Subresource: sub, Name: v.node},
	}}
	obj, err := v.client.Create(ctx, client.Key{Resource: authorizationv1.SchemeGroupVersion.WithResource("subjectaccessreviews")}, review)
	if err != nil {
		return verdict{}, err
	}
	answer, ok := obj.(*authorizationv1.SubjectAccessReview)
	if !ok {
		return verdict{}, fmt.Errorf("the server answered a %T", obj)
	}
	if answer.Status.Allowed {
		return verdict{until: v.now().Add(allowedFor)}, nil
	}
	return verdict{err: fmt.Errorf("user %q may not %s nodes/%s of node %s", user.Username, verb, sub, v.node), until: v.now().Add(forbiddenFor)}, nil
}
