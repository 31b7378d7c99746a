/*
 * The first program of every container and of every exec.
 *
 *   parent (Go)                          child (this program)
 *   -----------                          --------------------
 *   clone3 into the v2 cgroup   ----->   waits on fd 4
 *   joins v1 cgroups, oom score
 *   one byte on fd 4            ----->   namespaces, root
 *                               <-----   {0, PID} on fd 4 when a child goes on in this one's
 *                                        place, see go_on_in_child
 *   one more byte on fd 4       ----->   the child goes on
 *                                        /proc, masks, identity, filter
 *                               <-----   {S_PAUSE, 1} before it enters the root, {S_PAUSE, 2}
 *                                        before it gives up privileges, if the container has
 *   runs the hooks                       hooks for that moment
 *   one more byte on fd 4       ----->   the child goes on
 *                               <-----   {stage, errno} on fd 4 when a step fails, or
 *   end of file on fd 4         <-----   execve succeeded (fd 4 is close-on-exec)
 *
 * argv and envp are those of the program to run. The order of the last steps
 * matters: a seccomp filter without no_new_privs needs CAP_SYS_ADMIN, so it is
 * loaded before the capabilities go; with no_new_privs it is loaded last.
 */
#include "sys.h"
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/mount.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <asm/errno.h>
#include <asm/ioctls.h>
#include <linux/fcntl.h>

enum { CONFIG_FD = 3, SYNC_FD = 4, ROOT_FD = 5, USER_FD = 6, PROGRAM_FD = 7, PROCESSES_FD = 8 };
enum { F_PIVOT = 1, F_NEWCGROUP = 2, F_PROC = 4, F_TTY = 8, F_NNP = 16, F_SETNS = 32, F_PAUSE = 64, F_USER = 128, F_JOIN = 256, F_CREATED = 512, F_STARTING = 1024, F_OWN = 2048 };
enum {
	S_CONFIG = 1, S_SETNS, S_CGROUPNS, S_PIVOT, S_PROC, S_MASK, S_READONLY, S_TTY,
	S_SECCOMP, S_CAPS, S_GROUPS, S_USER, S_CWD, S_LOOKUP, S_EXEC, S_LIMIT, S_USERNS, S_PAUSE,
};

struct config {
	u32 magic, flags;
	u32 uid, gid;
	u32 ngroups, groups;
	u32 nfilter, filter;
	u32 nmasked, masked;
	u32 nreadonly, readonly;
	u32 cwd, setns;
	u32 program, unused; /* the path to be executed; 0: argv[0] is looked up */
	u64 bounding, effective, inheritable, ambient;
	u64 nofile;
};

struct failure { u32 stage; int32_t err; };

static char blob[64 << 10] __attribute__((aligned(16)));

static void die(u32 stage, long err) {
	struct failure f = { stage, (int32_t)-err };
	SYS3(__NR_write, SYNC_FD, &f, sizeof f);
	SYS1(__NR_exit_group, 127);
	__builtin_unreachable();
}

/* Waits for a byte from the parent. */
static void await(void) {
	char go;
	if (SYS3(__NR_read, SYNC_FD, &go, 1) != 1) SYS1(__NR_exit_group, 127);
}

/* Lets the parent run hooks. */
static void pause_for(int32_t moment) {
	struct failure f = { S_PAUSE, moment };
	SYS3(__NR_write, SYNC_FD, &f, sizeof f);
	await();
}

static void check(u32 stage, long ret) { if (ret < 0) die(stage, ret); }

#define MS_RDONLY 1
#define MS_NOSUID 2
#define MS_NODEV 4
#define MS_NOEXEC 8
#define MS_BIND 4096
#define MS_REC 16384

/* A masked file shows /dev/null, a masked directory an empty read-only tmpfs. */
static void mask(const char *path) {
	long r = SYS5(__NR_mount, "/dev/null", path, 0, MS_BIND, 0);
	if (r == -ENOTDIR)
		r = SYS5(__NR_mount, "tmpfs", path, "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=4k,nr_inodes=2");
	if (r < 0 && r != -ENOENT && r != -ENOTDIR) die(S_MASK, r);
}

static void freeze(const char *path) {
	struct mount_attr attr = { .attr_set = MOUNT_ATTR_RDONLY };
	long r = SYS5(__NR_mount, path, path, 0, MS_BIND | MS_REC, 0);
	if (r == -ENOENT || r == -ENOTDIR) return;
	check(S_READONLY, r);
	check(S_READONLY, SYS5(__NR_mount_setattr, AT_FDCWD, path, 0x8000 /* AT_RECURSIVE */, &attr, sizeof attr));
}

static void filter(const struct config *c) {
	struct { unsigned short n; const void *p; } prog = { (unsigned short)c->nfilter, blob + c->filter };
	if (c->nfilter) check(S_SECCOMP, SYS3(__NR_seccomp, SECCOMP_SET_MODE_FILTER, 0, &prog));
}

static void identity(const struct config *c) {
	struct __user_cap_header_struct h = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct d[2];
	int i;
	for (i = 0; i < 64; i++)
		if (!(c->bounding >> i & 1)) {
			long r = SYS2(__NR_prctl, PR_CAPBSET_DROP, i);
			if (r == -EINVAL) break; /* past the kernel's last capability */
			check(S_CAPS, r);
		}
	check(S_CAPS, SYS2(__NR_prctl, PR_SET_KEEPCAPS, 1));
	check(S_GROUPS, SYS2(__NR_setgroups, c->ngroups, blob + c->groups));
	check(S_USER, SYS3(__NR_setresgid, c->gid, c->gid, c->gid));
	check(S_USER, SYS3(__NR_setresuid, c->uid, c->uid, c->uid));
	d[0].effective = d[0].permitted = (u32)c->effective;
	d[1].effective = d[1].permitted = (u32)(c->effective >> 32);
	d[0].inheritable = (u32)c->inheritable;
	d[1].inheritable = (u32)(c->inheritable >> 32);
	check(S_CAPS, SYS2(__NR_capset, &h, d));
	for (i = 0; i < 64; i++)
		if (c->ambient >> i & 1) SYS4(__NR_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, i, 0);
}

/* Runs name, looked up in envp's PATH when it holds no slash. */
static void run(const char *name, char **argv, char **envp) {
	static char path[4096];
	const char *p = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
	size_t i, n = len(name);
	long denied = 0;
	for (i = 0; i < n; i++)
		if (name[i] == '/') {
			die(S_EXEC, SYS3(__NR_execve, name, argv, envp));
		}
	if (!n) die(S_LOOKUP, -ENOENT);
	for (i = 0; envp[i]; i++)
		if (same(envp[i], "PATH=", 5)) p = envp[i] + 5;
	while (*p) {
		size_t k = 0;
		while (*p && *p != ':' && k < 3000) path[k++] = *p++;
		if (*p == ':') p++;
		if (!k) path[k++] = '.';
		path[k++] = '/';
		if (k + n >= sizeof path) continue;
		memcpy(path + k, name, n + 1);
		long r = SYS3(__NR_execve, path, argv, envp);
		if (r == -EACCES) denied = r;
		else if (r != -ENOENT && r != -ENOTDIR) die(S_EXEC, r);
	}
	die(S_LOOKUP, denied ? denied : -ENOENT);
}

/*
 * The last namespace to be entered, as the host's root rights go with it. The
 * tree has been mounted by then; a container's first process copies it into a mount
 * namespace of its users' own, where they may mount and cannot undo what is there.
 */
static void user_namespace(const struct config *c) {
	check(S_USERNS, SYS2(__NR_setns, USER_FD, CLONE_NEWUSER));
	SYS1(__NR_close, USER_FD);
	if (c->flags & F_PIVOT) check(S_USERNS, SYS1(__NR_unshare, CLONE_NEWNS));
	if (c->flags & F_PAUSE) {
		check(S_GROUPS, SYS2(__NR_setgroups, 0, 0));
		check(S_USER, SYS3(__NR_setresgid, 0, 0, 0));
		check(S_USER, SYS3(__NR_setresuid, 0, 0, 0));
	}
}

static void mount_proc(void) {
	check(S_PROC, SYS5(__NR_mount, "proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0));
}

/*
 * Hooks that run before the root is entered find /proc in it. Links in the image lead
 * nowhere else, as this one is in the root while it mounts.
 */
static void mount_proc_early(void) {
	long host = SYS4(__NR_openat, AT_FDCWD, "/", 010000000 /* O_PATH */, 0);
	check(S_PROC, host);
	check(S_PROC, SYS1(__NR_fchdir, ROOT_FD));
	check(S_PROC, SYS1(__NR_chroot, "."));
	mount_proc();
	check(S_PROC, SYS1(__NR_fchdir, host));
	check(S_PROC, SYS1(__NR_chroot, "."));
	SYS1(__NR_close, host);
}

static void pivot(void) {
	check(S_PIVOT, SYS1(__NR_fchdir, ROOT_FD));
	check(S_PIVOT, SYS2(__NR_pivot_root, ".", "."));
	check(S_PIVOT, SYS2(__NR_umount2, ".", 2 /* MNT_DETACH */));
}

/*
 * A process namespace is entered by children alone. The child is the parent's own, and a
 * member of the same control groups. Until the parent knows it, it stays in this one's
 * process group: by that the parent finds it if either is killed.
 */
static void go_on_in_child(long flags) {
	long pid = sys6(__NR_clone, flags | CLONE_PARENT | 17 /* SIGCHLD */, 0, 0, 0, 0, 0);
	check(S_SETNS, pid);
	if (pid) {
		struct failure f = { 0, (int32_t)pid };
		SYS3(__NR_write, SYNC_FD, &f, sizeof f);
		SYS1(__NR_exit_group, 0);
	}
	await();
}

/*
 * Enters the process namespace of a container that runs. Its processes see this one
 * from then on, and some may trace others: so it comes after the host's files are out
 * of reach.
 */
static void join_processes(const struct config *c) {
	if (!(c->flags & F_SETNS)) { /* else that has done it */
		check(S_SETNS, SYS2(__NR_setns, PROCESSES_FD, CLONE_NEWPID));
		SYS1(__NR_close, PROCESSES_FD);
	}
	go_on_in_child(0);
}

/*
 * Process 1 of a pod with a shared PID namespace: reaps, and ends on a signal. That is
 * not the one that a terminal sends to whoever started the runtime in it.
 */
static void pause_forever(void) {
	u64 set = ~0ULL;
	SYS0(__NR_setsid);
	SYS4(__NR_rt_sigprocmask, 0, &set, 0, 8);
	SYS1(__NR_close, SYNC_FD);
	for (;;) {
		u64 want = ~0ULL;
		long sig = SYS4(__NR_rt_sigtimedwait, &want, 0, 0, 8);
		if (sig == 17) while (SYS4(__NR_wait4, -1, 0, 1, 0) > 0) {}
		else if (sig == 2 || sig == 15) SYS1(__NR_exit_group, 0);
	}
}

__attribute__((used)) void start_c(long *sp) {
	char **argv = (char **)(sp + 1);
	char **envp = argv + sp[0] + 1;
	struct config *c = (struct config *)blob;
	u32 i;
	const char *s;
	long cwd;

	long n = SYS4(__NR_pread64, CONFIG_FD, blob, sizeof blob, 0);
	SYS1(__NR_close, CONFIG_FD);
	/* With it goes all that whoever started the runtime has left open for its children. */
	SYS1(__NR_close, PROGRAM_FD);
	SYS3(__NR_close_range, PROCESSES_FD + 1, ~0U, 0);
	if ((c->flags & (F_JOIN | F_SETNS)) != F_JOIN) SYS1(__NR_close, PROCESSES_FD);
	if (!(c->flags & F_USER)) SYS1(__NR_close, USER_FD);
	if (n < (long)sizeof *c || c->magic != 0x6b6e7201) die(S_CONFIG, n < 0 ? n : -EINVAL);
	SYS3(__NR_fcntl, SYNC_FD, F_SETFD, 1);
	await();

	if (c->flags & F_PAUSE) {
		if (c->flags & F_PIVOT) {
			pivot();
			SYS1(__NR_close, ROOT_FD);
			check(S_PIVOT, SYS1(__NR_chdir, "/"));
		}
		if (c->flags & F_USER) user_namespace(c);
		if (c->flags & F_OWN) go_on_in_child(CLONE_NEWPID); /* which belongs to these users */
		pause_forever();
	}
	if (c->flags & F_SETNS) check(S_SETNS, SYS2(__NR_setns, ROOT_FD, c->setns));
	if (c->flags & F_CREATED) {
		/* A process namespace that is joined sees this one only when the host's files are
		 * out of reach, so its /proc cannot be had yet. */
		if ((c->flags & (F_PROC | F_JOIN)) == F_PROC) {
			mount_proc_early();
			c->flags &= ~F_PROC;
		}
		pause_for(1);
	}
	if (c->flags & F_PIVOT) pivot();
	if (c->flags & (F_PIVOT | F_SETNS)) {
		SYS1(__NR_close, ROOT_FD);
		check(S_PIVOT, SYS1(__NR_chdir, "/"));
	}
	if (c->flags & F_JOIN) join_processes(c);
	if (c->flags & F_PROC) mount_proc();
	for (s = blob + c->readonly, i = 0; i < c->nreadonly; i++, s += len(s) + 1) freeze(s);
	for (s = blob + c->masked, i = 0; i < c->nmasked; i++, s += len(s) + 1) mask(s);

	SYS0(__NR_setsid);
	/* Keys that others of knarr's session hold are nobody's in here; a kernel without keys,
	   or a user who may have no more of them, is no reason to stay away. */
	SYS3(__NR_keyctl, 1 /* KEYCTL_JOIN_SESSION_KEYRING */, 0, 0);
	if (c->flags & F_TTY) check(S_TTY, SYS3(__NR_ioctl, 0, TIOCSCTTY, 0));
	if (c->nofile) {
		u64 lim[2] = { c->nofile, c->nofile };
		check(S_LIMIT, SYS4(__NR_prlimit64, 0, 7 /* RLIMIT_NOFILE */, lim, 0));
	}
	if (c->flags & F_USER) user_namespace(c);
	if (c->flags & F_NEWCGROUP) check(S_CGROUPNS, SYS1(__NR_unshare, CLONE_NEWCGROUP));
	if (c->flags & F_STARTING) pause_for(2);
	if (!(c->flags & F_NNP)) filter(c);
	cwd = SYS1(__NR_chdir, blob + c->cwd);
	identity(c);
	/* A directory on a file system that maps root away is open to the user alone. */
	if (cwd < 0) check(S_CWD, SYS1(__NR_chdir, blob + c->cwd));
	if (c->flags & F_NNP) {
		check(S_SECCOMP, SYS5(__NR_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
		filter(c);
	}
	run(c->program ? blob + c->program : argv[0], argv, envp);
}
