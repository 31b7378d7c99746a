// Package remote is the client.Interface of components that run in another
// process or on another machine than the API server: HTTPS, protobuf where the
// kind has it, and caches that lists and watches fill.
//
// A watch that breaks is taken up where it ended; one whose place the server has
// forgotten is begun anew with a list, and subscribers get the differences.
package remote

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"knarr.dev/knarr/client"
)

// acceptTypes is what the server may answer: protobuf, and JSON for what has
// none.
const (
	protobuf    = runtime.ContentTypeProtobuf
	acceptTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
)

// Client is one identity's access to a server. Make one with New.
type Client struct {
	config *rest.Config
	http   *http.Client
	log    *slog.Logger

	ctx  context.Context // ends with Close
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu     sync.Mutex
	groups map[schema.GroupVersion]*rest.RESTClient
	caches map[cacheKey]*cache
}

var _ client.Interface = (*Client)(nil)

// New returns a client of the server that cfg names, with cfg's identity. It does
// not connect yet. Its caches follow the server until Close or the end of ctx.
func New(ctx context.Context, cfg *rest.Config, log *slog.Logger) (*Client, error) {
	cfg = rest.CopyConfig(cfg)
	cfg.QPS = -1 // the server knows how to share itself
	if cfg.UserAgent == "" {
		cfg.UserAgent = "knarr"
	}
	hc, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("access to %s: %w", cfg.Host, err)
	}
	c := &Client{config: cfg, http: hc, log: log, groups: map[schema.GroupVersion]*rest.RESTClient{}, caches: map[cacheKey]*cache{}}
	c.ctx, c.stop = context.WithCancel(ctx)
	return c, nil
}

// Close ends all caches and waits for them.
func (c *Client) Close() {
	c.stop()
	c.wg.Wait()
	c.http.CloseIdleConnections()
}

// typed tells whether the group has Go types; other objects are unstructured.
func typed(gv schema.GroupVersion) bool { return scheme.Scheme.IsVersionRegistered(gv) }

// group returns the REST client of a group that has Go types.
func (c *Client) group(gv schema.GroupVersion) (*rest.RESTClient, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if g := c.groups[gv]; g != nil {
		return g, nil
	}
	cfg := rest.CopyConfig(c.config)
	cfg.GroupVersion, cfg.APIPath = &gv, "/apis"
	if gv.Group == "" {
		cfg.APIPath = "/api"
	}
	cfg.ContentType, cfg.AcceptContentTypes = protobuf, acceptTypes
	cfg.NegotiatedSerializer = scheme.Codecs.WithoutConversion()
	g, err := rest.RESTClientForConfigAndClient(cfg, c.http)
	if err != nil {
		return nil, fmt.Errorf("access to %s: %w", gv, err)
	}
	c.groups[gv] = g
	return g, nil
}

func (c *Client) dynamic(k client.Key) (dynamic.ResourceInterface, error) {
	d, err := dynamic.NewForConfigAndClient(c.config, c.http)
	if err != nil {
		return nil, fmt.Errorf("access to %s: %w", k.Resource, err)
	}
	if k.Namespace != "" {
		return d.Resource(k.Resource).Namespace(k.Namespace), nil
	}
	return d.Resource(k.Resource), nil
}

// request begins one of a typed group about k.
func (c *Client) request(verb string, k client.Key) (*rest.Request, error) {
	g, err := c.group(k.Resource.GroupVersion())
	if err != nil {
		return nil, err
	}
	r := g.Verb(verb).NamespaceIfScoped(k.Namespace, k.Namespace != "").Resource(k.Resource.Resource)
	if k.Name != "" && (verb != http.MethodPost || k.Subresource != "") {
		r = r.Name(k.Name)
	}
	if k.Subresource != "" {
		r = r.SubResource(k.Subresource)
	}
	return r, nil
}

// send finishes a request. A server that answers with a mere Status, as for a
// binding, leaves what was sent as the answer.
func send(ctx context.Context, k client.Key, r *rest.Request, sent client.Object) (client.Object, error) {
	obj, err := r.Do(ctx).Get()
	if err != nil {
		return nil, err
	}
	if _, status := obj.(*metav1.Status); status && sent != nil {
		return sent, nil
	}
	out, ok := obj.(client.Object)
	if !ok {
		return nil, fmt.Errorf("%s: the server answered a %T", k, obj)
	}
	return out, nil
}

func subresources(k client.Key) []string {
	if k.Subresource == "" {
		return nil
	}
	return strings.Split(k.Subresource, "/")
}

// plain avoids an interface that holds a nil pointer.
func plain(u *unstructured.Unstructured, err error) (client.Object, error) {
	if err != nil {
		return nil, err
	}
	return u, nil
}

// unstructuredOf is obj for the groups that have no Go types.
func unstructuredOf(k client.Key, obj client.Object) (*unstructured.Unstructured, error) {
	if u, ok := obj.(*unstructured.Unstructured); ok {
		return u, nil
	}
	return nil, apierrors.NewBadRequest(fmt.Sprintf("%s: want an unstructured object, have a %T", k, obj))
}

// Get implements client.Interface.
func (c *Client) Get(ctx context.Context, k client.Key) (client.Object, error) {
	if !typed(k.Resource.GroupVersion()) {
		d, err := c.dynamic(k)
		if err != nil {
			return nil, err
		}
		return plain(d.Get(ctx, k.Name, metav1.GetOptions{}, subresources(k)...))
	}
	r, err := c.request(http.MethodGet, k)
	if err != nil {
		return nil, err
	}
	return send(ctx, k, r, nil)
}

// Create implements client.Interface.
func (c *Client) Create(ctx context.Context, k client.Key, obj client.Object) (client.Object, error) {
	if k.Subresource == "" {
		if k.Namespace == "" {
			k.Namespace = obj.GetNamespace()
		}
		if obj.GetName() == "" && obj.GetGenerateName() == "" && k.Name != "" {
			obj.SetName(k.Name)
		}
	}
	return c.write(ctx, http.MethodPost, k, obj)
}

// Update implements client.Interface.
func (c *Client) Update(ctx context.Context, k client.Key, obj client.Object) (client.Object, error) {
	return c.write(ctx, http.MethodPut, k, obj)
}

// write sends an object, typed or not.
func (c *Client) write(ctx context.Context, method string, k client.Key, obj client.Object) (client.Object, error) {
	if typed(k.Resource.GroupVersion()) {
		r, err := c.request(method, k)
		if err != nil {
			return nil, err
		}
		return send(ctx, k, r.Body(obj), obj)
	}
	d, err := c.dynamic(k)
	if err != nil {
		return nil, err
	}
	u, err := unstructuredOf(k, obj)
	if err != nil {
		return nil, err
	}
	if method == http.MethodPost {
		return plain(d.Create(ctx, u, metav1.CreateOptions{}, subresources(k)...))
	}
	return plain(d.Update(ctx, u, metav1.UpdateOptions{}, subresources(k)...))
}

// Patch implements client.Interface.
func (c *Client) Patch(ctx context.Context, k client.Key, p client.Patch) (client.Object, error) {
	opts := metav1.PatchOptions{}
	if p.Type == types.ApplyPatchType {
		opts.FieldManager, opts.Force = p.FieldManager, &p.Force
	}
	if !typed(k.Resource.GroupVersion()) {
		d, err := c.dynamic(k)
		if err != nil {
			return nil, err
		}
		return plain(d.Patch(ctx, k.Name, p.Type, p.Data, opts, subresources(k)...))
	}
	r, err := c.request(http.MethodPatch, k)
	if err != nil {
		return nil, err
	}
	r = r.SetHeader("Content-Type", string(p.Type)).VersionedParams(&opts, scheme.ParameterCodec)
	return send(ctx, k, r.Body(p.Data), nil)
}

// Delete implements client.Interface.
func (c *Client) Delete(ctx context.Context, k client.Key, opts metav1.DeleteOptions) error {
	if !typed(k.Resource.GroupVersion()) {
		d, err := c.dynamic(k)
		if err != nil {
			return err
		}
		return d.Delete(ctx, k.Name, opts, subresources(k)...)
	}
	r, err := c.request(http.MethodDelete, k)
	if err != nil {
		return err
	}
	return r.Body(&opts).Do(ctx).Error()
}

// Resources implements client.Interface.
func (c *Client) Resources(ctx context.Context) ([]client.ResourceInfo, error) {
	d, err := discovery.NewDiscoveryClientForConfigAndClient(c.config, c.http)
	if err != nil {
		return nil, fmt.Errorf("discovery: %w", err)
	}
	_, lists, silent := d.ServerGroupsAndResources()
	if silent != nil && !discovery.IsGroupDiscoveryFailedError(silent) {
		return nil, fmt.Errorf("discovery: %w", silent)
	}
	var out []client.ResourceInfo
	for _, l := range lists {
		gv, err := schema.ParseGroupVersion(l.GroupVersion)
		if err != nil {
			return nil, fmt.Errorf("discovery: %w", err)
		}
		for _, r := range l.APIResources {
			if !strings.Contains(r.Name, "/") {
				out = append(out, client.ResourceInfo{Resource: gv.WithResource(r.Name), Kind: r.Kind, Namespaced: r.Namespaced, Verbs: r.Verbs, StorageVersionHash: r.StorageVersionHash})
			}
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return out, silent
}
