// Package oci runs processes in containers: it mounts the root file system,
// enters and makes namespaces, places the process in its cgroups, reduces its
// privileges and reports its exit.
//
// No program stays behind per container. A throw-away thread of this process
// takes a private mount namespace, mounts the container's tree in it and
// clones a static C program of 6 KB out of a sealed memory file (c/init.c);
// that program enters the root, gives up privileges and executes the
// container's own command. See c/init.c for the protocol between the two, and
// hooks.go for what is run beside it for containers whose devices want that.
//
// Descriptors that must outlive this process (pidfds, output pipes, terminals)
// are kept by [Holder], one small process for a whole runtime.
package oci

//go:generate make -C c
//go:generate make -C c ARCH=arm64 CC=aarch64-linux-gnu-gcc
//go:generate go run ./gen
