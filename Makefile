# knarr: `make demo` shows it at work, `make test` passes all tests. Both install
# what they need on a Debian machine.

SHELL   := /bin/bash
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
# The version of the libraries that kubectl shows as its own.
KUBE    := $(shell awk '$$1 == "k8s.io/kubectl" { sub("v0", "v1", $$2); print $$2 }' go.mod)
KUBEV   := k8s.io/component-base/version
LDFLAGS := -s -w -funcalign=8 -X knarr.dev/knarr/cmd.Version=$(VERSION) -X $(KUBEV).gitVersion=$(KUBE) -X $(KUBEV).gitMajor=1 -X $(KUBEV).gitMinor=$(word 2,$(subst ., ,$(KUBE)))
GO      := CGO_ENABLED=0 go
# Packages whose speed nobody feels are compiled for size: commands, generated types
# and clients, schemas. It saves a tenth.
SMALL   := k8s.io/kubectl k8s.io/cli-runtime sigs.k8s.io/kustomize k8s.io/client-go k8s.io/api \
	github.com/google/gnostic-models github.com/google/cel-go github.com/antlr4-go/antlr github.com/grpc-ecosystem/grpc-gateway \
	k8s.io/apiextensions-apiserver github.com/google/go-containerregistry github.com/vishvananda/netlink github.com/spf13 \
	go.yaml.in/yaml gopkg.in/yaml.v3 k8s.io/apiserver google.golang.org/grpc github.com/cilium/ebpf k8s.io/cri-api k8s.io/kubelet github.com/prometheus k8s.io/component-base \
	google.golang.org/protobuf github.com/gogo/protobuf go.opentelemetry.io github.com/json-iterator github.com/google/go-cmp github.com/BurntSushi/toml github.com/godbus github.com/miekg/dns github.com/google/nftables github.com/emicklei github.com/fxamacker go.uber.org golang.org/x/net \
	golang.org/x/text golang.org/x/crypto k8s.io/metrics k8s.io/klog k8s.io/cri-streaming k8s.io/streaming k8s.io/component-helpers k8s.io/pod-security-admission github.com/cyphar github.com/docker github.com/go-jose github.com/moby \
	sigs.k8s.io/apiserver-network-proxy github.com/opencontainers google.golang.org/genproto github.com/chai2010 go.etcd.io/etcd/client knarr.dev/knarr/agent knarr.dev/knarr/cmd knarr.dev/knarr/container knarr.dev/knarr/api \
	k8s.io/kube-openapi k8s.io/dynamic-resource-allocation k8s.io/kube-aggregator github.com/fsnotify github.com/russross github.com/liggitt github.com/google/uuid github.com/go-openapi github.com/peterbourgon github.com/monochromegane sigs.k8s.io/yaml \
	go.etcd.io/etcd/server/v3/etcdserver/api knarr.dev/knarr/controller knarr.dev/knarr/dns knarr.dev/knarr/client knarr.dev/knarr/kit \
	github.com/sirupsen github.com/gorilla github.com/golang-jwt github.com/distribution github.com/josharian github.com/mailru github.com/mdlayher github.com/beorn7 github.com/blang github.com/golang/protobuf github.com/xiang90 github.com/grpc-ecosystem/go-grpc-middleware github.com/coreos gopkg.in/evanphx gopkg.in/inf.v0 golang.org/x/oauth2 golang.org/x/term github.com/stoewer github.com/dustin github.com/cenkalti \
	go.etcd.io/etcd/server/v3/auth go.etcd.io/etcd/server/v3/proxy knarr.dev/knarr/apiserver/bootstrap knarr.dev/knarr/apiserver/openapi knarr.dev/knarr/apiserver/crd knarr.dev/knarr/apiserver/aggregate knarr.dev/knarr/apiserver/webhook knarr.dev/knarr/apiserver/configfile knarr.dev/knarr/datapath k8s.io/apimachinery/pkg/util/strategicpatch go.etcd.io/etcd/api go.etcd.io/etcd/server/v3/lease go.etcd.io/etcd/server/v3/storage/schema go.etcd.io/etcd/server/v3/config

.PHONY: build tools test bench bench-api bench-cri linear clients upstream conformance record demo demo-clean generate lint setup clean

build: setup ## the one binary
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' $(SMALL:%=-gcflags=%/...=-l) -o bin/knarr .

tools: setup ## helpers of demo, tests and benchmarks
	$(GO) build -trimpath -ldflags '-s -w' -o bin/ ./test/hello ./test/load ./test/mkimage

setup:
	@./demo/setup

test: build tools ## all tests; the last line counts them
	./test/run

bench: build tools ## figures, as a table
	$(GO) run ./test/bench

bench-api: build upstream ## upstream's API server and knarr, the same program for both
	$(GO) run ./test/bench/versus

bench-cri: build ## container runtimes through the CRI: knarr's, runc and crun through it, containerd
	./test/bench/cri/setup
	$(GO) run ./test/bench/cri

linear: build ## linearizability and watches, over a hundred kills
	KNARR_KILLS=$(or $(KILLS),100) go test ./test/linear -run TestKills -v -count=1 -timeout 60m

clients: build tools ## Helm 3 and 4, controller-runtime, client-go, kubectl of the oldest and of our version
	cd test/clients && go test -count=1 -timeout 15m ./...

conformance: build ## upstream's conformance suite: FOCUS=regexp, SIG=api-machinery, or all of it; notes the outcome in docs/conformance.md
	./test/conformance/setup
	cd test/conformance && go run . -table ../../docs/conformance.md $(if $(FOCUS),-focus '$(FOCUS)') $(if $(SIG),-sig '$(SIG)')

upstream: setup # upstream's API server and etcd, from their Go modules
	cd test/conformance && CGO_ENABLED=0 go build -trimpath -o ../../.cache/conformance/bin/ k8s.io/kubernetes/cmd/kube-apiserver && CGO_ENABLED=0 go build -trimpath -o ../../.cache/conformance/bin/etcd go.etcd.io/etcd/server/v3

record: upstream ## what upstream's API server answers to the corpus of test/diff
	go run ./test/diff/record

demo: build tools ## a cluster with a rolling update under load
	./demo/run

demo-clean: ## remove every trace of the demo
	./demo/clean

generate: ## committed objects: eBPF programs and the containers' init (needs clang and gcc)
	go generate ./datapath/... ./container/...

lint: ## beyond what make test checks; deprecations of Kubernetes' own types are not ours to follow
	gofmt -l . | (! grep .)
	go vet ./...
	go run honnef.co/go/tools/cmd/staticcheck@v0.8.2 -checks all,-SA1019,-ST1000,-ST1003,-ST1005,-ST1020,-ST1021,-ST1022,-ST1023 ./...

clean:
	rm -rf bin .cache
