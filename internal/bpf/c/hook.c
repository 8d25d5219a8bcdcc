// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//
// Puts a policy on every new connection of a cgroup before connect() or
// accept() returns it, and keeps the program from weakening it afterwards.
// What a connection had before is kept in storage of its socket: it lives as
// long as the socket, and enforce finds by it what is ours.
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include "settings.h"

#define MAX_RULES 64

// rule is what a connection must be like for a policy. Times are in seconds
// but for the user timeout, negative when it is left alone.
struct rule {
	__u32 addr[4]; // of the peer, network order, IPv4 mapped
	__u32 mask[4];
	__u16 local_low, local_high;
	__u16 peer_low, peer_high;
	__u32 idle;
	__u32 interval;
	__s32 user_timeout_ms;
	__u8 probes;
	__u8 family; // 0 for both
	__u8 unused[2];
};

const volatile struct rule rules[MAX_RULES];
const volatile __u32 rule_count;

// kept is what a connection of ours had, and what it was given.
struct kept {
	__u64 cookie;
	__u32 netns;
	struct settings before;
	__u32 idle;
	__u32 interval;
	__s32 user_timeout_ms;
	__u32 probes;
	__u32 unused;
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct kept);
} changed SEC(".maps");

enum counter {
	APPLIED, // connections that have the policy
	FAILED,  // the kernel refused something
	REFUSED, // their own user timeout would have made the policy fatal
	LIMITED_KEEPALIVE,
	LIMITED_IDLE,
	LIMITED_INTERVAL,
	LIMITED_PROBES,
	LIMITED_USER_TIMEOUT,
	COUNTERS
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

// label says what this hook is, for those who find it.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__uint(value_size, 32768);
} label SEC(".maps");

static __always_inline void count(__u32 what)
{
	__u64 *n = bpf_map_lookup_elem(&counters, &what);

	if (n)
		++*n;
}

static __always_inline __s32 put(struct bpf_sock_ops *ctx, int level, int option, int value)
{
	return bpf_setsockopt(ctx, level, option, &value, sizeof(value));
}

static __always_inline int matches(const volatile struct rule *r, __u32 local, __u32 peer, const __u32 *ip, __u8 family)
{
	if (local < r->local_low || local > r->local_high || peer < r->peer_low || peer > r->peer_high)
		return 0;
	if (r->family && r->family != family)
		return 0;
	return !((ip[0] ^ r->addr[0]) & r->mask[0]) && !((ip[1] ^ r->addr[1]) & r->mask[1]) &&
	       !((ip[2] ^ r->addr[2]) & r->mask[2]) && !((ip[3] ^ r->addr[3]) & r->mask[3]);
}

static __always_inline const volatile struct rule *find(struct bpf_sock_ops *ctx)
{
	__u32 local = ctx->local_port, peer = bpf_ntohl(ctx->remote_port);
	__u32 ip[4] = { 0, 0, bpf_htonl(0xffff), 0 };
	__u8 family = 4;

	if (ctx->family == AF_INET) {
		ip[3] = ctx->remote_ip4;
	} else if (ctx->family == AF_INET6) {
		ip[0] = ctx->remote_ip6[0];
		ip[1] = ctx->remote_ip6[1];
		ip[2] = ctx->remote_ip6[2];
		ip[3] = ctx->remote_ip6[3];
		if (ip[0] || ip[1] || ip[2] != bpf_htonl(0xffff))
			family = 6;
	} else {
		return 0;
	}
	for (__u32 i = 0; i < MAX_RULES && i < rule_count; i++) {
		if (matches(&rules[i], local, peer, ip, family))
			return &rules[i];
	}
	return 0;
}

static __always_inline void give(struct bpf_sock_ops *ctx, const volatile struct rule *r)
{
	struct bpf_sock *sk = ctx->sk;
	struct kept *k;
	struct tcp_sock *tp;
	__u64 timeout;
	__s32 error;

	if (!sk)
		return;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return;
	k = bpf_sk_storage_get(&changed, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!k) {
		count(FAILED); // what cannot be put back is not changed
		return;
	}
	k->cookie = bpf_get_socket_cookie(ctx);
	k->netns = tp->inet_conn.icsk_inet.sk.__sk_common.skc_net.net->ns.inum;
	read_settings(tp, &k->before);
	k->user_timeout_ms = r->user_timeout_ms;
	timeout = k->user_timeout_ms < 0 ? k->before.user_timeout_ms : k->user_timeout_ms;
	if (timeout && timeout <= (r->idle + (__u64)r->interval * (r->probes - 1)) * 1000) {
		bpf_sk_storage_delete(&changed, sk);
		count(REFUSED);
		return;
	}
	k->idle = r->idle;
	k->interval = r->interval;
	k->probes = r->probes;
	error = put(ctx, IPPROTO_TCP, TCP_KEEPINTVL, r->interval);
	error = error ?: put(ctx, IPPROTO_TCP, TCP_KEEPCNT, r->probes);
	error = error ?: put(ctx, IPPROTO_TCP, TCP_KEEPIDLE, r->idle);
	if (r->user_timeout_ms >= 0 && r->user_timeout_ms != k->before.user_timeout_ms)
		error = error ?: put(ctx, IPPROTO_TCP, TCP_USER_TIMEOUT, r->user_timeout_ms);
	if (!k->before.keepalive)
		error = error ?: put(ctx, SOL_SOCKET, SO_KEEPALIVE, 1);
	count(error ? FAILED : APPLIED);
}

SEC("sockops")
int greet(struct bpf_sock_ops *ctx)
{
	const volatile struct rule *r;

	if (ctx->op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB && ctx->op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		return 1;
	r = find(ctx);
	if (r)
		give(ctx, r);
	return 1;
}

// limit makes the call set the policy's value, and succeed.
static __always_inline int limit(struct bpf_sockopt *ctx, int *value, int most, __u32 counter)
{
	*value = most;
	ctx->optlen = sizeof(*value);
	count(counter);
	return 1;
}

// swallow makes the call succeed and do nothing.
static __always_inline int swallow(struct bpf_sockopt *ctx, __u32 counter)
{
	ctx->optlen = -1;
	count(counter);
	return 1;
}

// Values that the kernel refuses are left for it to refuse.
SEC("cgroup/setsockopt")
int enforce(struct bpf_sockopt *ctx)
{
	int *value = ctx->optval;
	int of_socket = ctx->level == SOL_SOCKET && ctx->optname == SO_KEEPALIVE;
	int of_tcp = ctx->level == IPPROTO_TCP &&
		     (ctx->optname == TCP_KEEPIDLE || ctx->optname == TCP_KEEPINTVL || ctx->optname == TCP_KEEPCNT ||
		      ctx->optname == TCP_USER_TIMEOUT);
	struct bpf_sock *sk = ctx->sk;
	struct kept *k;
	__u64 timeout;

	if ((!of_socket && !of_tcp) || !sk)
		goto pass;
	k = bpf_sk_storage_get(&changed, sk, 0, 0);
	if (!k || ctx->optlen < (int)sizeof(int) || (void *)(value + 1) > ctx->optval_end)
		goto pass;
	if (of_socket) {
		if (!*value)
			return swallow(ctx, LIMITED_KEEPALIVE);
		goto pass;
	}
	switch (ctx->optname) {
	case TCP_KEEPIDLE:
		if (*value > (int)k->idle && *value <= MAX_TCP_KEEPIDLE)
			return limit(ctx, value, k->idle, LIMITED_IDLE);
		break;
	case TCP_KEEPINTVL:
		if (*value > (int)k->interval && *value <= MAX_TCP_KEEPINTVL)
			return limit(ctx, value, k->interval, LIMITED_INTERVAL);
		break;
	case TCP_KEEPCNT:
		if (*value > (int)k->probes && *value <= MAX_TCP_KEEPCNT)
			return limit(ctx, value, k->probes, LIMITED_PROBES);
		break;
	case TCP_USER_TIMEOUT:
		// The kernel looks at it instead of the number of probes.
		timeout = (k->idle + (__u64)k->interval * k->probes) * 1000;
		if (k->user_timeout_ms > 0 && (*value == 0 || *value > k->user_timeout_ms))
			return limit(ctx, value, k->user_timeout_ms, LIMITED_USER_TIMEOUT);
		if (k->user_timeout_ms <= 0 && *value > 0 && *value > timeout)
			return swallow(ctx, LIMITED_USER_TIMEOUT);
	}
pass:
	// The kernel shows no more than a page, and takes 0 for "unchanged".
	if (ctx->optlen > 4096)
		ctx->optlen = 0;
	return 1;
}

// list writes what is kept of every socket, in all network namespaces.
SEC("iter/bpf_sk_storage_map")
int list(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct sock *sk = ctx->sk;
	void *value = ctx->value;

	if (sk && value)
		bpf_seq_write(ctx->meta->seq, value, sizeof(struct kept));
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
