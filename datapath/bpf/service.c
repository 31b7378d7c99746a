// SPDX-License-Identifier: Apache-2.0
//
// Service translation at the socket: a connect() or sendmsg() towards a service address is pointed at one of the
// service's backends before any packet exists, and recvmsg() and getpeername() show the service address again.
// Nothing is done per packet.
//
// Addresses are always 16 bytes in network order, IPv4 in its mapped form, so that both families share every map and
// a v6 socket that speaks IPv4 finds the same entries.

#include <linux/bpf.h>
#include <linux/in.h>
#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define ECONNREFUSED 111
#define NSEC_PER_SEC 1000000000ULL
// How long an unconnected UDP socket keeps talking to the backend that it got first, as conntrack would have it.
#define UDP_STICK_NS (60 * NSEC_PER_SEC)

enum { PASS, REWRITE, REFUSE };
enum { CLIENT_NETNS, CLIENT_SOCKET };

struct endpoint {
	__be32 addr[4];
	__be16 port;
	__u16 pad;
};

// An address that clients dial. The unspecified address of a family stands for every address of the node.
struct frontend {
	__be32 addr[4];
	__be16 port;
	__u8 proto;
	__u8 pad;
};

struct target {
	__u64 pool;
	__u32 generation;
	__u32 count;
	__u32 affinity; // seconds, 0: none
	__u32 pad;
};

struct slot {
	__u64 pool;
	__u32 generation;
	__u32 index;
};

struct member {
	__u64 pool;
	struct endpoint backend; // all zero: stands for connections that found no backend
	__u32 pad;
};

struct client {
	__u64 pool;
	__u64 cookie;
	__u64 kind;
};

struct stick {
	__u64 seen; // ns of CLOCK_MONOTONIC
	struct endpoint backend;
	__u32 pad;
};

struct peer {
	__u64 cookie;
	struct endpoint backend;
	__u32 pad;
};

struct translation {
	struct endpoint backend;
	struct endpoint service;
};

struct node {
	__be32 addr[4];
};

// Entries of these five come and go with the cluster's state; only user space writes them.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct frontend);
	__type(value, struct target);
} services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct slot);
	__type(value, struct endpoint);
} backends SEC(".maps");

// Who belongs to a pool, with the number of connections sent there.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct member);
	__type(value, __u64);
} members SEC(".maps");

// Addresses of the node, for node ports.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct node);
	__type(value, __u8);
} nodes SEC(".maps");

// These remember clients; losing an entry costs affinity or the cosmetics of a source address.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct client);
	__type(value, struct stick);
} affinity SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct peer);
	__type(value, struct endpoint);
} peers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct translation);
} translations SEC(".maps");

// Set before load. The verifier removes branches that are constantly false, and with them calls of helpers that an
// old kernel does not have.
volatile const __u64 host_cookie = 0;  // network namespace of the node; 0: the initial one
volatile const bool has_retval = false;
volatile const bool has_storage = false;

static __always_inline bool is_mapped(const __be32 *a)
{
	return a[0] == 0 && a[1] == 0 && a[2] == bpf_htonl(0xffff);
}

// Addresses that mean the node only to a client in the node's own network namespace.
static __always_inline bool is_self(const __be32 *a)
{
	if (is_mapped(a))
		return a[3] == 0 || (bpf_ntohl(a[3]) >> 24) == 127;
	return a[0] == 0 && a[1] == 0 && a[2] == 0 && (a[3] == 0 || a[3] == bpf_htonl(1));
}

static __always_inline bool on_host(struct bpf_sock_addr *ctx)
{
	__u64 host = host_cookie ? host_cookie : bpf_get_netns_cookie(NULL);

	return bpf_get_netns_cookie(ctx) == host;
}

static __always_inline struct target *find(struct bpf_sock_addr *ctx, const struct endpoint *dst, __u8 proto)
{
	struct frontend key = { .port = dst->port, .proto = proto };
	bool self = is_self(dst->addr);
	struct target *t;

	// A pod's loopback is its own: only the node's may be a frontend.
	if (self && !on_host(ctx))
		return NULL;
	__builtin_memcpy(key.addr, dst->addr, sizeof(key.addr));
	t = bpf_map_lookup_elem(&services, &key);
	if (t)
		return t;
	__builtin_memset(key.addr, 0, sizeof(key.addr));
	if (is_mapped(dst->addr))
		key.addr[2] = bpf_htonl(0xffff);
	t = bpf_map_lookup_elem(&services, &key);
	if (!t || self)
		return t;
	return bpf_map_lookup_elem(&nodes, dst->addr) ? t : NULL;
}

static __always_inline bool count(__u64 pool, const struct endpoint *backend, bool add)
{
	struct member key = { .pool = pool, .backend = *backend };
	__u64 *n = bpf_map_lookup_elem(&members, &key);

	if (n && add)
		*n += 1;
	return n != NULL;
}

// Chooses a backend for dst. A set of slots is immutable: user space writes a new generation, points the service at it
// and then deletes the old one, so a missing slot means only that the service entry has to be read again.
static __noinline int choose(struct bpf_sock_addr *ctx, const struct endpoint *dst, __u8 proto, bool connected,
			   struct endpoint *out)
{
	const struct endpoint nobody = {};

#pragma unroll
	for (int i = 0; i < 4; i++) {
		struct target *t = find(ctx, dst, proto);

		if (!t)
			return PASS;
		__u64 pool = t->pool;
		__u32 n = t->count;
		__u64 keep = t->affinity * NSEC_PER_SEC;
		struct slot slot = { .pool = pool, .generation = t->generation };

		if (n == 0) {
			count(pool, &nobody, true);
			return REFUSE;
		}
		struct client who = { .pool = pool };
		__u64 now = 0;

		if (keep) {
			who.kind = CLIENT_NETNS;
			who.cookie = bpf_get_netns_cookie(ctx);
		} else if (!connected) {
			keep = UDP_STICK_NS;
			who.kind = CLIENT_SOCKET;
			who.cookie = bpf_get_socket_cookie(ctx);
		}
		if (keep) {
			struct stick *s = bpf_map_lookup_elem(&affinity, &who);

			now = bpf_ktime_get_ns();
			if (s && now - s->seen < keep) {
				*out = s->backend;
				if (count(pool, out, connected)) {
					s->seen = now;
					return REWRITE;
				}
			}
		}
		slot.index = bpf_get_prandom_u32() % n;
		struct endpoint *b = bpf_map_lookup_elem(&backends, &slot);

		if (!b)
			continue;
		*out = *b;
		count(pool, out, true);
		if (keep) {
			struct stick s = { .seen = now, .backend = *out };

			bpf_map_update_elem(&affinity, &who, &s, BPF_ANY);
		}
		return REWRITE;
	}
	return REFUSE;
}

static __always_inline void remember(struct bpf_sock_addr *ctx, const struct endpoint *service,
				     const struct endpoint *backend, bool connected)
{
	if (has_storage && connected && ctx->sk) {
		struct translation *t =
			bpf_sk_storage_get(&translations, ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);

		if (t) {
			t->backend = *backend;
			t->service = *service;
			return;
		}
	}
	struct peer key = { .cookie = bpf_get_socket_cookie(ctx), .backend = *backend };

	bpf_map_update_elem(&peers, &key, service, BPF_ANY);
}

static __always_inline bool same(const struct endpoint *a, const struct endpoint *b)
{
	return a->addr[3] == b->addr[3] && a->port == b->port && a->addr[2] == b->addr[2] &&
	       a->addr[1] == b->addr[1] && a->addr[0] == b->addr[0];
}

// Finds the service address behind which ctx's socket sees the backend.
static __always_inline bool recall(struct bpf_sock_addr *ctx, const struct endpoint *backend, struct endpoint *out)
{
	if (has_storage && ctx->sk) {
		struct translation *t = bpf_sk_storage_get(&translations, ctx->sk, 0, 0);

		if (t && same(&t->backend, backend)) {
			*out = t->service;
			return true;
		}
	}
	struct peer key = { .cookie = bpf_get_socket_cookie(ctx), .backend = *backend };
	struct endpoint *service = bpf_map_lookup_elem(&peers, &key);

	if (!service)
		return false;
	*out = *service;
	return true;
}

static __always_inline void read4(struct bpf_sock_addr *ctx, struct endpoint *e)
{
	e->addr[2] = bpf_htonl(0xffff);
	e->addr[3] = ctx->user_ip4;
	e->port = (__be16)ctx->user_port;
}

static __always_inline void write4(struct bpf_sock_addr *ctx, const struct endpoint *e)
{
	ctx->user_ip4 = e->addr[3];
	ctx->user_port = e->port;
}

static __always_inline void read6(struct bpf_sock_addr *ctx, struct endpoint *e)
{
	e->addr[0] = ctx->user_ip6[0];
	e->addr[1] = ctx->user_ip6[1];
	e->addr[2] = ctx->user_ip6[2];
	e->addr[3] = ctx->user_ip6[3];
	e->port = (__be16)ctx->user_port;
}

static __always_inline void write6(struct bpf_sock_addr *ctx, const struct endpoint *e)
{
	ctx->user_ip6[0] = e->addr[0];
	ctx->user_ip6[1] = e->addr[1];
	ctx->user_ip6[2] = e->addr[2];
	ctx->user_ip6[3] = e->addr[3];
	ctx->user_port = e->port;
}

static __always_inline int forward(struct bpf_sock_addr *ctx, bool v6, bool connected)
{
	struct endpoint dst = {}, backend = {};
	__u8 proto = (__u8)ctx->protocol;

	if (proto != IPPROTO_TCP && proto != IPPROTO_UDP)
		return 1;
	if (v6)
		read6(ctx, &dst);
	else
		read4(ctx, &dst);
	switch (choose(ctx, &dst, proto, connected, &backend)) {
	case REWRITE:
		remember(ctx, &dst, &backend, connected);
		if (v6)
			write6(ctx, &backend);
		else
			write4(ctx, &backend);
		return 1;
	case REFUSE:
		// Without the helper the caller sees EPERM.
		if (has_retval)
			bpf_set_retval(-ECONNREFUSED);
		return 0;
	}
	return 1;
}

static __always_inline int reverse(struct bpf_sock_addr *ctx, bool v6)
{
	struct endpoint backend = {}, service = {};

	if (v6)
		read6(ctx, &backend);
	else
		read4(ctx, &backend);
	if (recall(ctx, &backend, &service)) {
		if (v6)
			write6(ctx, &service);
		else
			write4(ctx, &service);
	}
	return 1;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	return forward(ctx, false, true);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	return forward(ctx, true, true);
}

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	return forward(ctx, false, false);
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	return forward(ctx, true, false);
}

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
	return reverse(ctx, false);
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
	return reverse(ctx, true);
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	return reverse(ctx, false);
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	return reverse(ctx, true);
}

char _license[] SEC("license") = "Apache-2.0";
