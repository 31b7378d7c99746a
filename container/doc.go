// Package container is knarr's container runtime: the CRI v1 services, served
// by this process alone. There is no shim and no pause process; containers,
// their output and their exit codes survive the death of this process.
//
// What is where:
//
//	Root/layers, Root/images   image layers and records
//	Root/pods/<id>.json        a sandbox's configuration and state
//	Root/containers/<id>/      state.json, and the writable layer (upper, work)
//	Run/ns/<id>/               the sandbox's pinned namespaces and /dev/shm
//	Run/c/<id>/                FIFOs of the container's output and input; its bundle, if it has one
//	Run/holder.sock            the process that keeps pidfds and pipes, see package oci
//
// The life of a container:
//
//	CreateContainer   cgroup, folders, user, seccomp filter     CREATED
//	StartContainer    namespaces, mounts, clone, exec           RUNNING
//	exit (pidfd)      code, OOM, end of output                  EXITED
//	RemoveContainer   everything gone
//
// After a restart [New] reads the records back and takes up each container by
// its pidfd from the holder.
package container
