package cmd

import (
	"cmp"
	"log/slog"
	"net"
	"strconv"

	"github.com/spf13/pflag"
)

// HealthzConfig says where the agent answers its health checks to whoever reaches it, as
// kubelets do for this machine's supervisors and monitors.
type HealthzConfig struct {
	// HealthzPort is unset for 10248 with the machine's own node of the instance knarr, and
	// for none with others; 0 is off.
	HealthzPort *int `json:"healthzPort,omitempty"`
	// HealthzAddress is an address of this machine; empty: 127.0.0.1.
	HealthzAddress string `json:"healthzBindAddress,omitempty"`
}

// The kubelet's place.
const (
	defaultHealthzPort    = 10248
	defaultHealthzAddress = "127.0.0.1"
)

// healthzFlags adds the kubelet's flags; what it returns overrides the configuration by those
// that were given.
func healthzFlags(f *pflag.FlagSet) func(*Config) {
	port := f.Int("healthz-port", defaultHealthzPort, "port of the health checks that need no credentials; 0: none, which is the default of instances with other names")
	address := f.String("healthz-bind-address", defaultHealthzAddress, "address of this port")
	return func(cfg *Config) {
		if f.Changed("healthz-port") {
			cfg.Node.HealthzPort = port
		}
		if f.Changed("healthz-bind-address") {
			cfg.Node.HealthzAddress = *address
		}
	}
}

// healthzPort is where the node's health checks are answered; 0: nowhere.
func (c *Config) healthzPort() int {
	switch {
	case c.Node.HealthzPort != nil:
		return *c.Node.HealthzPort
	case c.isTheNode():
		return defaultHealthzPort
	}
	return 0
}

// listenHealthz binds that port. Pods run without it, so what is taken is only told: nil.
func (c *Config) listenHealthz(log *slog.Logger) net.Listener {
	port := c.healthzPort()
	if port == 0 {
		return nil
	}
	l, err := net.Listen("tcp", net.JoinHostPort(cmp.Or(c.Node.HealthzAddress, defaultHealthzAddress), strconv.Itoa(port)))
	if err != nil {
		log.Warn("nobody answers the node's health checks: stop what uses the port, or set node.healthzPort to another or to 0", "error", err)
		return nil
	}
	return l
}
