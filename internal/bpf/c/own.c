// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//
// Notes what programs set themselves on connections, in storage of the socket:
// once a hook has given a connection its policy, the value tells no more
// whether the program wants it so, too.
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

enum part { KEEPALIVE, IDLE, INTERVAL, PROBES, USER_TIMEOUT, PARTS };

// calls are the last ones of a program.
struct calls {
	__u32 made; // a bit for each part
	__s32 value[PARTS];
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct calls);
} own SEC(".maps");

// made is a socket of which there are calls.
struct made {
	__u64 cookie;
	struct calls calls;
};

const struct made *unused __attribute__((unused));

// ours is the name of threads by which we change sockets of others.
const volatile char ours[16];

static __always_inline int by_deadpeer(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	char comm[16];

	if (bpf_probe_read_kernel(comm, sizeof(comm), __builtin_preserve_access_index(&task->comm)))
		return 0;
	for (int i = 0; i < 16; i++) {
		if (comm[i] != ours[i])
			return 0;
	}
	return 1;
}

// part_of gives what the option is, and the values that the kernel takes.
static __always_inline __u32 part_of(struct bpf_sockopt *ctx, int *least, int *most)
{
	*least = 1;
	*most = MAX_TCP_KEEPIDLE; // and of the interval
	if (ctx->level == SOL_SOCKET && ctx->optname == SO_KEEPALIVE) {
		*least = -2147483647 - 1;
		*most = 2147483647;
		return KEEPALIVE;
	}
	if (ctx->level != IPPROTO_TCP)
		return PARTS;
	switch (ctx->optname) {
	case TCP_KEEPIDLE:
		return IDLE;
	case TCP_KEEPINTVL:
		return INTERVAL;
	case TCP_KEEPCNT:
		*most = MAX_TCP_KEEPCNT;
		return PROBES;
	case TCP_USER_TIMEOUT:
		*least = 0;
		*most = 2147483647;
		return USER_TIMEOUT;
	}
	return PARTS;
}

SEC("cgroup/setsockopt")
int note(struct bpf_sockopt *ctx)
{
	int *value = ctx->optval;
	struct bpf_sock *sk = ctx->sk;
	int least, most;
	__u32 part = part_of(ctx, &least, &most);
	struct calls *c;

	if (part >= PARTS || !sk || ctx->optlen < (int)sizeof(int) || (void *)(value + 1) > ctx->optval_end)
		goto pass;
	if (*value < least || *value > most || by_deadpeer())
		goto pass;
	c = bpf_sk_storage_get(&own, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (c && part < PARTS) {
		c->value[part] = *value;
		c->made |= 1 << part;
	}
pass:
	// The kernel shows no more than a page, and takes 0 for "unchanged".
	if (ctx->optlen > 4096)
		ctx->optlen = 0;
	return 1;
}

// list_own writes the sockets of which there are calls, in all network
// namespaces.
SEC("iter/bpf_sk_storage_map")
int list_own(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct sock *sk = ctx->sk;
	struct calls *calls = ctx->value;
	struct made m = {};

	if (!sk || !calls)
		return 0;
	m.cookie = bpf_get_socket_cookie(sk);
	m.calls = *calls;
	bpf_seq_write(ctx->meta->seq, &m, sizeof(m));
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
