package load

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -go-package load -no-global-types -target bpf -cflags "-O2 -g -Wall -Werror -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu" -type frontend -type target -type slot -type endpoint -type member -type node service ../bpf/service.c
