package cmd

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"

	"knarr.dev/knarr/agent/cpus"
	numa "knarr.dev/knarr/agent/memory"
	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/apiserver/admission"
	"knarr.dev/knarr/container/oci/external"
)

// Config is all that can be set, by file, environment-free; flags override it.
type Config struct {
	// Name tells instances on one machine apart: it prefixes links, control
	// groups and tables.
	Name string `json:"name"`
	// DataDir keeps what must survive a reboot; RunDir what need not.
	DataDir string `json:"dataDir"`
	RunDir  string `json:"runDir"`
	// LogLevel is debug, info, warn or error.
	LogLevel string `json:"logLevel"`
	// Nodes is how many nodes this machine plays; those beside the first are
	// processes in network namespaces of their own.
	Nodes int `json:"nodes"`
	// Group is the control group of the containers; empty: Name. Services reach
	// the processes in it alone.
	Group string `json:"group,omitempty"`

	API   APIConfig   `json:"api"`
	Audit AuditConfig `json:"audit,omitzero"`
	// PodSecurity is what Pod Security admission demands by default, and of whom
	// nothing.
	PodSecurity admission.PodSecurity `json:"podSecurity,omitzero"`
	// EventLimits bound how many events are written.
	EventLimits []admission.EventLimit `json:"eventLimits,omitempty"`
	Store       StoreConfig            `json:"store"`
	Node        NodeConfig             `json:"node"`
	Network     NetworkConfig          `json:"network"`
	Join        JoinConfig             `json:"join,omitzero"`
	// Registries configures image registries by host.
	Registries map[string]RegistryConfig `json:"registries,omitempty"`
	// Runtimes are programs that run pods instead of knarr itself, by the names of
	// RuntimeClass handlers; empty: runc, crun and runsc, where they are in PATH.
	Runtimes map[string]external.Config `json:"runtimes,omitempty"`
}

// APIConfig is the API server's part.
type APIConfig struct {
	// Listen is host:port; an empty host means all addresses.
	Listen string `json:"listen"`
	// Names are further names and addresses in the server's certificate.
	Names []string `json:"names,omitempty"`
	// CertFile and KeyFile are the server's certificate, read anew when they change;
	// empty: the cluster's own authority issues one. Nodes must trust its issuer.
	CertFile string `json:"certFile,omitempty"`
	KeyFile  string `json:"keyFile,omitempty"`
	// AuthenticationConfig is a file with an AuthenticationConfiguration of
	// apiserver.config.k8s.io/v1: issuers of tokens, and anonymous requests.
	AuthenticationConfig string `json:"authenticationConfig,omitempty"`
	// TokenWebhookConfig is a kubeconfig that says which webhook is asked, with
	// TokenReviews of authentication.k8s.io/v1, whose the other bearer tokens are. Its
	// answers are remembered for TokenWebhookCacheTTL, 2m if that is empty.
	TokenWebhookConfig   string `json:"authenticationTokenWebhookConfigFile,omitempty"`
	TokenWebhookCacheTTL string `json:"authenticationTokenWebhookCacheTTL,omitempty"`
	// AuthorizationConfig is a file with an AuthorizationConfiguration of
	// apiserver.config.k8s.io/v1; empty: Node, then RBAC.
	AuthorizationConfig string `json:"authorizationConfig,omitempty"`
	// MaxRequests is how many requests are served at once; the others wait, fairly
	// by flow. 0: 600.
	MaxRequests int `json:"maxRequests,omitempty"`
	// Kubeconfig is merged with the administrator's access; empty: none is.
	Kubeconfig string `json:"kubeconfig"`
}

// StoreConfig is the store's part.
type StoreConfig struct {
	// Endpoints of an external etcd; empty: etcd runs inside this process.
	Endpoints []string `json:"endpoints,omitempty"`
	CAFile    string   `json:"caFile,omitempty"`
	CertFile  string   `json:"certFile,omitempty"`
	KeyFile   string   `json:"keyFile,omitempty"`
}

// NodeConfig is the agent's part.
type NodeConfig struct {
	Name    string            `json:"name"`
	IP      string            `json:"ip"`
	Labels  map[string]string `json:"labels,omitempty"`
	MaxPods int               `json:"maxPods"`
	// Listen is where the agent serves logs and exec to the API server.
	Listen string `json:"listen"`
	// RuntimeEndpoint is the socket of the container runtime to use instead of the
	// built-in one, ImageEndpoint that of its image service if that is elsewhere.
	RuntimeEndpoint string `json:"containerRuntimeEndpoint,omitempty"`
	ImageEndpoint   string `json:"imageServiceEndpoint,omitempty"`
	// StaticPodPath is a folder, or file, of manifests of pods that the node runs
	// whatever the API says; empty: there are none.
	StaticPodPath   string `json:"staticPodPath,omitempty"`
	EvictionConfig  `json:",inline"`
	ExclusiveConfig `json:",inline"`
	ShutdownConfig  `json:",inline"`
	ImageGCConfig   `json:",inline"`
	PulledConfig    `json:",inline"`
	HealthzConfig   `json:",inline"`
	AdmissionConfig `json:",inline"`
	// MaxRestartPeriod bounds the back-off of containers that end again and again,
	// from 1s to 5m; empty: 5m.
	MaxRestartPeriod string         `json:"maxContainerRestartPeriod,omitempty"`
	UserNamespaces   UserNamespaces `json:"userNamespaces,omitzero"`
	// KubeletDir is where plugins and monitors look for the node's agent; empty: the
	// kubelet's /var/lib/kubelet for the instance knarr, kubelet in dataDir for others.
	KubeletDir string `json:"kubeletDir,omitempty"`
	// PodLogsDir is the folder of the pods' logs; empty: /var/log/pods for the instance
	// knarr, which also has a link to each log in /var/log/containers, logs in dataDir for
	// others.
	PodLogsDir string `json:"podLogsDir,omitempty"`
	// ResolvConf is the file with the node's resolvers; empty: /etc/resolv.conf, or what
	// systemd-resolved forwards to if that names only the machine itself.
	ResolvConf string `json:"resolvConf,omitempty"`
	// MemorySwap says what containers have of the machine's swap.
	MemorySwap struct {
		// Behavior is NoSwap (or empty), or LimitedSwap: burstable ones have a share.
		Behavior string `json:"swapBehavior,omitempty"`
	} `json:"memorySwap,omitzero"`
	// CredentialConfig is a file, or folder of files, with a CredentialProviderConfig of
	// kubelet.config.k8s.io/v1: which of the programs in CredentialBin are asked for the
	// credentials of which images.
	CredentialConfig string `json:"imageCredentialProviderConfig,omitempty"`
	CredentialBin    string `json:"imageCredentialProviderBinDir,omitempty"`
	// CNIConfDir and CNIBinDir are where that runtime looks for networks.
	CNIConfDir string `json:"cniConfDir,omitempty"`
	CNIBinDir  string `json:"cniBinDir,omitempty"`
}

// JoinConfig is how a node that runs without a control plane reaches its cluster:
// by a kubeconfig, or by server, authority and token.
type JoinConfig struct {
	Kubeconfig string `json:"kubeconfig,omitempty"`
	// BootstrapKubeconfig has a token with which the node asks for certificates of its own.
	BootstrapKubeconfig string `json:"bootstrapKubeconfig,omitempty"`
	Server              string `json:"server,omitempty"`
	CAFile              string `json:"caFile,omitempty"`
	TokenFile           string `json:"tokenFile,omitempty"`
	// CertFile and KeyFile serve the kubelet API; empty: the client certificate
	// does, which must be good for both.
	CertFile string `json:"certFile,omitempty"`
	KeyFile  string `json:"keyFile,omitempty"`
}

// NetworkConfig is the data path's part.
type NetworkConfig struct {
	PodCIDR     string `json:"podCIDR"`     // of the cluster
	NodePodCIDR string `json:"nodePodCIDR"` // of this node, within podCIDR
	ServiceCIDR string `json:"serviceCIDR"`
	Domain      string `json:"domain"`
	NodePorts   string `json:"nodePorts"` // "30000-32767"
}

// RegistryConfig says how to reach one registry.
type RegistryConfig struct {
	Mirrors            []string `json:"mirrors,omitempty"`
	PlainHTTP          bool     `json:"plainHTTP,omitempty"`
	InsecureSkipVerify bool     `json:"insecureSkipVerify,omitempty"`
	Username           string   `json:"username,omitempty"`
	Password           string   `json:"password,omitempty"`
}

// Places that Config begins with.
const (
	defaultConfigFile = "/etc/knarr/config.yaml"
	defaultDataDir    = "/var/lib/knarr"
	defaultRunDir     = "/run/knarr"
)

// makeDirs makes the folders of the instance, for nobody but root to read. The users of pods
// with a user namespace pass through RunDir, as programs like runc find the file systems of
// containers by their paths.
func (c *Config) makeDirs() error {
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return fmt.Errorf("create %s: %w", c.DataDir, err)
	}
	err := os.MkdirAll(c.RunDir, 0o711)
	if err == nil {
		err = os.Chmod(c.RunDir, 0o711) // whoever made it
	}
	if err != nil {
		return fmt.Errorf("create %s: %w", c.RunDir, err)
	}
	return nil
}

// defaultConfig is what holds where nothing is set.
func defaultConfig() *Config {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "knarr"
	}
	return &Config{
		Name: "knarr", DataDir: defaultDataDir, RunDir: defaultRunDir, LogLevel: "info", Nodes: 1,
		API:     APIConfig{Listen: ":6443", Kubeconfig: defaultKubeconfig()},
		Node:    NodeConfig{Name: strings.ToLower(host), IP: hostIP(), MaxPods: 110, Listen: ":10250", CNIConfDir: defaultCNIConf, CNIBinDir: defaultCNIBin},
		Network: NetworkConfig{PodCIDR: "10.244.0.0/16", NodePodCIDR: "10.244.0.0/24", ServiceCIDR: "10.96.0.0/16", Domain: "cluster.local", NodePorts: "30000-32767"},
	}
}

// hostIP is the address of the interface with the default route; without one,
// the first global address; else loopback.
func hostIP() string {
	// Connecting a UDP socket sends nothing: it only looks up the route.
	if c, err := net.Dial("udp4", "203.0.113.1:9"); err == nil {
		defer c.Close()
		if a, ok := c.LocalAddr().(*net.UDPAddr); ok {
			return a.IP.String()
		}
	}
	addrs, err := net.InterfaceAddrs()
	if err == nil {
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() && n.IP.To4() != nil {
				return n.IP.String()
			}
		}
	}
	return "127.0.0.1"
}

// loadConfig reads file over the defaults. A missing file is an error only if
// required.
func loadConfig(file string, required bool) (*Config, error) {
	cfg := defaultConfig()
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) && !required {
		return cfg, nil
	}
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if err := yaml.UnmarshalStrict(b, cfg); err != nil {
		return nil, fmt.Errorf("configuration %s: %w", file, err)
	}
	return cfg, nil
}

// validate finds every mistake, each with its field.
func (c *Config) validate() error {
	var errs field.ErrorList
	bad := func(path, value, msg string) { errs = append(errs, field.Invalid(field.NewPath(path), value, msg)) }
	if len(c.Name) == 0 || len(c.Name) > 7 || len(utilvalidation.IsDNS1123Label(c.Name)) > 0 || strings.Contains(c.Name, "-") {
		bad("name", c.Name, "must be 1 to 7 lower-case letters and digits")
	}
	for path, v := range map[string]string{"dataDir": c.DataDir, "runDir": c.RunDir, "node.kubeletDir": c.kubeletDir(), "node.podLogsDir": c.logRoot()} {
		if !filepath.IsAbs(v) {
			bad(path, v, "must be an absolute path")
		}
	}
	if _, ok := logLevels[c.LogLevel]; !ok {
		bad("logLevel", c.LogLevel, "must be debug, info, warn or error")
	}
	for path, v := range map[string]string{"api.listen": c.API.Listen, "node.listen": c.Node.Listen} {
		if _, _, err := net.SplitHostPort(v); err != nil {
			bad(path, v, "must be host:port or :port")
		}
	}
	if p := c.healthzPort(); p < 0 || p > 65535 {
		errs = append(errs, field.Invalid(field.NewPath("node.healthzPort"), p, "must be a port, or 0 for none"))
	}
	if a := c.Node.HealthzAddress; a != "" && net.ParseIP(a) == nil {
		bad("node.healthzBindAddress", a, "must be an IP address")
	}
	if msgs := utilvalidation.IsDNS1123Subdomain(c.Node.Name); len(msgs) > 0 {
		bad("node.name", c.Node.Name, msgs[0])
	}
	if _, err := netip.ParseAddr(c.Node.IP); err != nil {
		bad("node.ip", c.Node.IP, "must be an IP address")
	}
	for name, r := range c.Runtimes {
		if err := r.Check(); err != nil {
			bad("runtimes."+name, r.Path, err.Error())
		}
	}
	if c.Node.MaxPods < 1 {
		errs = append(errs, field.Invalid(field.NewPath("node.maxPods"), c.Node.MaxPods, "must be at least 1"))
	}
	for path, v := range map[string]string{"network.podCIDR": c.Network.PodCIDR, "network.nodePodCIDR": c.Network.NodePodCIDR, "network.serviceCIDR": c.Network.ServiceCIDR} {
		if p, err := netip.ParsePrefix(v); err != nil || !p.Addr().Is4() || p.Bits() > 28 {
			bad(path, v, "must be an IPv4 prefix of at most 28 bits, such as 10.244.0.0/16")
		}
	}
	if _, err := c.Node.EvictionConfig.config(); err != nil {
		errs = append(errs, field.Forbidden(field.NewPath("node"), err.Error()))
	}
	if (c.Node.CredentialConfig == "") != (c.Node.CredentialBin == "") {
		bad("node.imageCredentialProviderConfig", c.Node.CredentialConfig, "must be given together with node.imageCredentialProviderBinDir")
	}
	if b := c.Node.MemorySwap.Behavior; b != "" && b != podspec.NoSwap && b != podspec.LimitedSwap {
		bad("node.memorySwap.swapBehavior", b, "must be NoSwap or LimitedSwap")
	}
	if _, err := c.Node.ShutdownConfig.periods(); err != nil {
		errs = append(errs, field.Forbidden(field.NewPath("node"), err.Error()))
	}
	if _, err := c.Node.ImageGCConfig.parse(); err != nil {
		errs = append(errs, field.Forbidden(field.NewPath("node"), err.Error()))
	}
	if err := c.Node.PulledConfig.verification().Validate(); err != nil {
		errs = append(errs, field.Forbidden(field.NewPath("node"), err.Error()))
	}
	if _, err := c.Node.ExclusiveConfig.config(); err != nil {
		errs = append(errs, field.Forbidden(field.NewPath("node"), err.Error()))
	}
	if d, err := c.Node.maxRestart(); err != nil || d < 0 {
		bad("node.maxContainerRestartPeriod", c.Node.MaxRestartPeriod, "must be a duration from 1s to 5m")
	}
	if _, err := c.userSlots("", ""); err != nil {
		errs = append(errs, field.Forbidden(field.NewPath("node.userNamespaces"), err.Error()))
	}
	if c.foreign() && c.Nodes > 1 {
		bad("node.containerRuntimeEndpoint", c.Node.RuntimeEndpoint, "must be empty when the machine plays several nodes: one runtime serves one node")
	}
	if e := c.Node.ExclusiveConfig; c.Nodes > 1 && (e.CPUPolicy == cpus.Static || e.MemoryPolicy == numa.Static) {
		errs = append(errs, field.Forbidden(field.NewPath("node.cpuManagerPolicy"), "the nodes of one machine would give the same CPUs and memory away: leave cpuManagerPolicy and memoryManagerPolicy none, or run one node"))
	}
	if c.Nodes < 1 || c.Nodes > maxNodes {
		errs = append(errs, field.Invalid(field.NewPath("nodes"), c.Nodes, fmt.Sprintf("must be 1 to %d", maxNodes)))
	} else if _, err := c.nodeRanges(); len(errs) == 0 && err != nil {
		bad("network.podCIDR", c.Network.PodCIDR, err.Error())
	}
	if (c.API.CertFile == "") != (c.API.KeyFile == "") {
		bad("api.certFile", c.API.CertFile, "must be given together with api.keyFile")
	}
	errs = append(errs, c.Audit.validate()...)
	if c.PodSecurity.Defaults != (admission.PodSecurity{}).Defaults || len(c.PodSecurity.Exemptions.RuntimeClasses)+len(c.PodSecurity.Exemptions.Namespaces)+len(c.PodSecurity.Exemptions.Usernames) > 0 {
		if err := c.PodSecurity.Validate(); err != nil {
			errs = append(errs, field.Forbidden(field.NewPath("podSecurity"), err.Error()))
		}
	}
	for i := range c.EventLimits {
		if err := c.EventLimits[i].Validate(); err != nil {
			errs = append(errs, field.Forbidden(field.NewPath("eventLimits").Index(i), err.Error()))
		}
	}
	var lo, hi int32
	if n, err := fmt.Sscanf(c.Network.NodePorts, "%d-%d", &lo, &hi); n != 2 || err != nil || lo < 1 || hi > 65535 || lo > hi {
		bad("network.nodePorts", c.Network.NodePorts, "must be a range such as 30000-32767")
	}
	if err := errs.ToAggregate(); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	return nil
}
