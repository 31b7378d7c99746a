// Package external runs containers by programs that speak the OCI runtime
// specification (github.com/opencontainers/runtime-spec): runc, crun, runsc and
// their like. It implements oci.Executor.
//
//	Start    mount namespace of a thread ─> overlay ─> config.json ─> create ─> start
//	Exec     exec, in the foreground: the program's exit code is the command's
//	Signal   the process itself, or kill where that process is not the container's
//	Delete   delete, and once more with --force
//
// The container's file system is mounted in the mount namespace of a throw-away
// thread, in which create runs. It ends with the container: nothing of it is ever
// seen in the host's, or left there by a crash.
//
// No process of the runtime stays behind (runsc's sandbox is the container). Pipes,
// terminals and pidfds are kept by oci.Holder, as for knarr's own containers. Exit
// codes come from the pidfd, which needs Linux 6.15; before that they are unknown.
package external
