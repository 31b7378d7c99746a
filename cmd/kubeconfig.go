package cmd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"knarr.dev/knarr/kit/pki"
)

// defaultKubeconfig is the file that kubectl reads.
func defaultKubeconfig() string {
	if v := os.Getenv("KUBECONFIG"); v != "" {
		return filepath.SplitList(v)[0]
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return filepath.Join(home, ".kube", "config")
}

// adminKubeconfig is the file that holds only this cluster's access.
func adminKubeconfig(dataDir string) string { return filepath.Join(dataDir, "kubeconfig") }

// writeKubeconfig writes the administrator's access to its own file and merges it
// as context name into another (empty: none).
func writeKubeconfig(own, merged, name, server string, ca *pki.Authority, admin *pki.Pair) error {
	cfg := clientcmdapi.NewConfig()
	addAccess(cfg, name, server, ca, admin)
	cfg.CurrentContext = name
	if err := clientcmd.WriteToFile(*cfg, own); err != nil {
		return fmt.Errorf("kubeconfig: %w", err)
	}
	if merged == "" || merged == own {
		return nil
	}
	old, err := clientcmd.LoadFromFile(merged)
	if errors.Is(err, fs.ErrNotExist) {
		old, err = clientcmdapi.NewConfig(), nil
	}
	if err != nil {
		return fmt.Errorf("kubeconfig %s: %w: mend the file, or choose another with --kubeconfig", merged, err)
	}
	addAccess(old, name, server, ca, admin)
	old.CurrentContext = name
	if err := os.MkdirAll(filepath.Dir(merged), 0o700); err != nil {
		return fmt.Errorf("kubeconfig: %w", err)
	}
	if err := clientcmd.WriteToFile(*old, merged); err != nil {
		return fmt.Errorf("kubeconfig: %w", err)
	}
	return nil
}

func addAccess(cfg *clientcmdapi.Config, name, server string, ca *pki.Authority, admin *pki.Pair) {
	cfg.Clusters[name] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: ca.PEM}
	cfg.AuthInfos[name] = &clientcmdapi.AuthInfo{ClientCertificateData: admin.CertPEM, ClientKeyData: admin.KeyPEM}
	cfg.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
}

// removeAccess takes a cluster out of a kubeconfig file, if it is there.
func removeAccess(file, name string) error {
	cfg, err := clientcmd.LoadFromFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("kubeconfig %s: %w", file, err)
	}
	if cfg.Contexts[name] == nil {
		return nil
	}
	delete(cfg.Clusters, name)
	delete(cfg.AuthInfos, name)
	delete(cfg.Contexts, name)
	if cfg.CurrentContext == name {
		cfg.CurrentContext = ""
	}
	if err := clientcmd.WriteToFile(*cfg, file); err != nil {
		return fmt.Errorf("kubeconfig %s: %w", file, err)
	}
	return nil
}

// clusterInfo is a kubeconfig that says where the cluster is and whom to trust
// there, and nothing of users.
func clusterInfo(server string, ca *pki.Authority) (string, error) {
	cfg := clientcmdapi.NewConfig()
	cfg.Clusters[""] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: ca.PEM}
	b, err := clientcmd.Write(*cfg)
	if err != nil {
		return "", fmt.Errorf("cluster-info: %w", err)
	}
	return string(b), nil
}
