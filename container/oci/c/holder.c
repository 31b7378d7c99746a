/*
 * Keeps file descriptors while the runtime is away: for every container its
 * pidfd (so that the kernel remembers the exit status) and the reading ends of
 * its output (so that nothing written is lost).
 *
 * Listens on fd 3, a SOCK_SEQPACKET socket, and serves one client at a time:
 *   'P' key, descriptors attached   keep them, replacing those of key
 *   'G' key                         answer them
 *   'D' key                         drop them
 *   'L'                             answer one packet per key, then an empty key
 *   'Q'                             exit
 * Every answer begins with 'K' (done) or 'E' (unknown key, table full).
 */
#include "sys.h"
#include <linux/fcntl.h>

enum { KEYLEN = 95, FDS = 4, SLOTS = 4096 };

struct slot { char key[KEYLEN + 1]; int nfd; int fd[FDS]; };
struct packet { char op; char key[KEYLEN]; };
struct iovec_ { void *base; size_t n; };
struct msghdr_ { void *name; int namelen; struct iovec_ *iov; size_t niov; void *control; size_t ncontrol; int flags; };
struct cmsg { size_t n; int level, type; int fd[FDS]; int pad[2]; };

static struct slot slots[SLOTS];

static struct slot *find(const char *key) {
	for (int i = 0; i < SLOTS; i++)
		if (slots[i].key[0] && same(slots[i].key, key, KEYLEN)) return &slots[i];
	return 0;
}

static void drop(struct slot *s) {
	for (int i = 0; i < s->nfd; i++) SYS1(__NR_close, s->fd[i]);
	s->nfd = 0;
	s->key[0] = 0;
}

static void answer(int c, char op, const char *key, struct slot *s) {
	struct packet p;
	struct cmsg m;
	memset(&p, 0, sizeof p);
	p.op = op;
	if (key) memcpy(p.key, key, KEYLEN);
	struct iovec_ v = { &p, sizeof p };
	struct msghdr_ h = { 0, 0, &v, 1, 0, 0, 0 };
	if (s && s->nfd) {
		m.n = 16 + sizeof(int) * s->nfd;
		m.level = 1; /* SOL_SOCKET */
		m.type = 1;  /* SCM_RIGHTS */
		for (int i = 0; i < s->nfd; i++) m.fd[i] = s->fd[i];
		h.control = &m;
		h.ncontrol = (m.n + 7) & ~7UL;
	}
	SYS3(__NR_sendmsg, c, &h, 0x4000 /* MSG_NOSIGNAL */);
}

static char put(const char *key, const struct cmsg *m, int n) {
	struct slot *s = find(key);
	if (s) drop(s);
	else for (int i = 0; i < SLOTS && !s; i++) if (!slots[i].key[0]) s = &slots[i];
	if (!s || !key[0]) {
		for (int i = 0; i < n; i++) SYS1(__NR_close, m->fd[i]);
		return 'E';
	}
	memcpy(s->key, key, KEYLEN);
	s->nfd = n;
	for (int i = 0; i < n; i++) s->fd[i] = m->fd[i];
	return 'K';
}

static void serve(int c) {
	for (;;) {
		struct packet p;
		struct cmsg m;
		memset(&p, 0, sizeof p);
		struct iovec_ v = { &p, sizeof p };
		struct msghdr_ h = { 0, 0, &v, 1, &m, sizeof m, 0 };
		long n = SYS3(__NR_recvmsg, c, &h, 0x40000000 /* MSG_CMSG_CLOEXEC */);
		if (n == -4) continue;
		if (n <= 0) return;
		int nfd = h.ncontrol >= 16 && m.type == 1 ? (int)((m.n - 16) / sizeof(int)) : 0;
		struct slot *s = p.op == 'G' || p.op == 'D' ? find(p.key) : 0;
		switch (p.op) {
		case 'P': answer(c, put(p.key, &m, nfd), 0, 0); break;
		case 'G': answer(c, s ? 'K' : 'E', 0, s); break;
		case 'D': if (s) drop(s); answer(c, s ? 'K' : 'E', 0, 0); break;
		case 'L':
			for (int i = 0; i < SLOTS; i++) if (slots[i].key[0]) answer(c, 'K', slots[i].key, 0);
			answer(c, 'K', 0, 0);
			break;
		case 'Q': SYS1(__NR_exit_group, 0); break;
		default: answer(c, 'E', 0, 0);
		}
	}
}

__attribute__((used)) void start_c(long *sp) {
	(void)sp;
	/* The parent waits for the first process; the second belongs to nobody. */
	if (sys6(__NR_clone, 17, 0, 0, 0, 0, 0) != 0) SYS1(__NR_exit_group, 0);
	SYS0(__NR_setsid);
	SYS1(__NR_chdir, "/");
	SYS2(__NR_listen, 3, 4); /* makes this process the socket's identity */
	SYS3(__NR_write, 4, "", 1);
	SYS1(__NR_close, 4);
	SYS3(__NR_close_range, 5, ~0U, 0);
	for (;;) {
		long c = SYS4(__NR_accept4, 3, 0, 0, 02000000 /* SOCK_CLOEXEC */);
		if (c < 0) continue;
		serve((int)c);
		SYS1(__NR_close, c);
	}
}
