package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// mirrored is the registry whose names the specs use.
const mirrored = "registry.k8s.io"

// imageSet makes the images that conformance specs start, by name below
// registry.k8s.io. They do what upstream's do, from Debian's programs.
func imageSet(t tools) (map[string]v1.Image, error) {
	set := map[string]v1.Image{}
	agnhost, err := agnhostFS(t)
	if err != nil {
		return nil, err
	}
	agnhostLayer, err := agnhost.layer()
	if err != nil {
		return nil, err
	}
	box := baseFS()
	if err := errors.Join(box.program("bin/bash", find("bash")), box.file("bin/sh", t.path("sh"), 0o755)); err != nil {
		return nil, err
	}
	if err := box.busybox(); err != nil {
		return nil, err
	}
	boxLayer, err := box.layer()
	if err != nil {
		return nil, err
	}
	add := func(tag string, conf v1.Config, base v1.Layer, more rootfs) {
		if err != nil {
			return
		}
		var layers []v1.Layer
		if base != nil {
			layers = append(layers, base)
		}
		if more != nil {
			l, e := more.layer()
			if err = e; e != nil {
				return
			}
			layers = append(layers, l)
		}
		set[tag], err = image(conf, layers...)
	}
	with := func(path, from string, mode int64) rootfs {
		fs := rootfs{}
		if e := fs.file(path, from, mode); e != nil && err == nil {
			err = e
		}
		return fs
	}
	pets := func(animal string) rootfs {
		fs := rootfs{}
		fs.text("data.json", fmt.Sprintf("{\n  \"image\": %q\n}\n", animal+".jpg"))
		fs.text(animal+".jpg", animal)
		return fs
	}
	web := rootfs{}
	web.text("usr/share/nginx/html/index.html", "<!DOCTYPE html><html><head><title>Welcome to nginx!</title></head><body><h1>Welcome to nginx!</h1></body></html>\n")
	web["usr/sbin/nginx"] = entry{mode: 0o755, body: []byte("#!/bin/sh\nexec /bin/httpd -f -p 80 -h /usr/share/nginx/html\n")}

	entry := []string{"/agnhost"}
	for _, tag := range []string{"agnhost:2.63.0", "agnhost:2.55"} {
		add("e2e-test-images/"+tag, v1.Config{Entrypoint: entry, Cmd: []string{"pause"}}, agnhostLayer, nil)
	}
	add("e2e-test-images/glibc-dns-testing:2.0.0", v1.Config{Cmd: []string{"/bin/sh"}}, agnhostLayer, nil)
	for _, tag := range []string{"busybox:1.37.0-1", "busybox:1.36.1-1"} {
		add("e2e-test-images/"+tag, v1.Config{Cmd: []string{"sh"}}, boxLayer, nil)
	}
	for _, tag := range []string{"nginx:1.15-4", "nginx:1.27-0"} {
		add("e2e-test-images/"+tag, v1.Config{Cmd: []string{"/usr/sbin/nginx"}}, boxLayer, web)
	}
	for _, pet := range []string{"nautilus", "kitten"} {
		add("e2e-test-images/"+pet+":1.8", v1.Config{Entrypoint: entry, Cmd: []string{"test-webserver"}}, agnhostLayer, pets(pet))
	}
	add("e2e-test-images/nonewprivs:1.4", v1.Config{Cmd: []string{"nnp"}}, boxLayer, with("usr/local/bin/nnp", t.path("nnp"), 0o6755))
	add("e2e-test-images/nonroot:1.5", v1.Config{User: "1234"}, boxLayer, nil)
	add("e2e-test-images/sample-apiserver:1.29.2", v1.Config{Entrypoint: []string{"/sample-apiserver"}}, nil, with("sample-apiserver", t.path("sample-apiserver"), 0o755))
	add("etcd:3.6.8-0", v1.Config{}, boxLayer, with("usr/local/bin/etcd", t.path("etcd"), 0o755))
	add("pause:3.10.2", v1.Config{Entrypoint: []string{"/pause"}}, nil, with("pause", t.path("pause"), 0o755))
	return set, err
}

// agnhostFS is the root of the image that most specs use.
func agnhostFS(t tools) (rootfs, error) {
	fs := baseFS()
	for path, from := range map[string]string{
		"bin/sh": find("dash"), "bin/bash": find("bash"), "usr/bin/curl": find("curl"), "usr/bin/dig": find("dig"),
		"usr/bin/getent": find("getent"), "bin/nc": find("nc.openbsd"), "usr/bin/iperf": find("iperf"), "bin/ip": find("ip"),
		"agnhost": t.path("agnhost"),
	} {
		if err := fs.program(path, from); err != nil {
			return nil, err
		}
	}
	fs.link("agnhost-2", "agnhost")
	fs.link("usr/local/bin/iperf", "/usr/bin/iperf")
	if err := fs.busybox(); err != nil {
		return nil, err
	}
	cert, key, err := localhost()
	if err != nil {
		return nil, err
	}
	fs.text("localhost.crt", cert)
	fs.text("localhost.key", key)
	return fs, nil
}

// localhost is a certificate for servers that specs reach without verifying it.
func localhost() (cert, key string, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotAfter: time.Now().AddDate(10, 0, 0), KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
	if err != nil {
		return "", "", err
	}
	priv, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return "", "", err
	}
	block := func(t string, b []byte) string { return string(pem.EncodeToMemory(&pem.Block{Type: t, Bytes: b})) }
	return block("CERTIFICATE", der), block("PRIVATE KEY", priv), nil
}

// imageRegistry serves the images while the specs run.
type imageRegistry struct {
	address string // host:port that every node reaches
	server  *http.Server
}

func (r *imageRegistry) close() { _ = r.server.Close() }

// serveImages makes the images and serves them on all addresses of this machine,
// so that nodes in network namespaces reach them too.
func serveImages(ctx context.Context, t tools, cache string) (*imageRegistry, error) {
	step("making the images")
	set, err := imageSet(t)
	if err != nil {
		return nil, err
	}
	blobs := filepath.Join(cache, "blobs")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		return nil, err
	}
	h := registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithBlobHandler(registry.NewDiskBlobHandler(blobs)))
	r := &imageRegistry{server: &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}}
	go func() { _ = r.server.Serve(l) }() // ends by close
	port := l.Addr().(*net.TCPAddr).Port
	for tag, img := range set {
		ref, err := name.ParseReference(fmt.Sprintf("127.0.0.1:%d/%s", port, tag), name.Insecure)
		if err != nil {
			return nil, err
		}
		if err := remote.Write(ref, img, remote.WithContext(ctx)); err != nil {
			return nil, fmt.Errorf("push %s: %w", tag, err)
		}
	}
	r.address = fmt.Sprintf("%s:%d", hostIP(), port)
	step("%d images at %s", len(set), r.address)
	return r, nil
}

// hostIP is this machine's own address; nothing is sent to find it.
func hostIP() string {
	if c, err := net.Dial("udp4", "203.0.113.1:9"); err == nil {
		defer c.Close()
		return c.LocalAddr().(*net.UDPAddr).IP.String()
	}
	return "127.0.0.1"
}
