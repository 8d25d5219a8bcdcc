// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//
// Puts a policy on every new connection of a cgroup before connect() or
// accept() returns it, and keeps the program from weakening it afterwards.
// What a connection had before is kept until it ends, and enforce finds by it
// what is ours.
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
	__u8 family;  // 0 for both
	__u8 enforce; // programs are held to it
	__u8 unused;
};

const volatile struct rule rules[MAX_RULES];
const volatile __u32 rule_count;

// kept is what a connection of ours had, and which rule it fits.
struct kept {
	__u64 cookie; // 0 where there is none
	__u32 netns;
	__u32 rule;
	struct settings before;
};

// Storage of the socket is the safe place, and costs more than all the rest.
// Cookies are given out one after the other, so that the place of a cookie is
// mostly free, and in the processor's cache.
#define PLACES (1 << 16)

// place is written under its lock but for setting the cookie to 0. Who lists
// has no lock, and finds out by the checksum that he saw it half written.
struct place {
	struct bpf_spin_lock lock;
	__u32 checksum;
	struct kept kept;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PLACES);
	__type(key, __u32);
	__type(value, struct place);
} places SEC(".maps");

// stored are those whose place was taken, and those given by others.
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct kept);
} stored SEC(".maps");

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

// find gives the first rule that fits, or MAX_RULES.
static __always_inline __u32 find(struct bpf_sock_ops *ctx)
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
		return MAX_RULES;
	}
	for (__u32 i = 0; i < MAX_RULES && i < rule_count; i++) {
		if (matches(&rules[i], local, peer, ip, family))
			return i;
	}
	return MAX_RULES;
}

static __always_inline struct place *place_of(__u64 cookie)
{
	__u32 at = cookie % PLACES;

	return bpf_map_lookup_elem(&places, &at);
}

// keep has the kernel say when the connection ends. Where another program
// takes that back, places stay taken, and no harm is done.
static __always_inline int keep(struct bpf_sock_ops *ctx, struct bpf_sock *sk, struct kept *k)
{
	struct place *p = place_of(k->cookie);
	__u32 *words = (__u32 *)k, checksum = 0;
	int mine = 0;

	for (unsigned int i = 0; i < sizeof(*k) / sizeof(*words); i++)
		checksum = (checksum << 1 | checksum >> 31) ^ words[i];
	if (p) {
		bpf_spin_lock(&p->lock);
		if (!p->kept.cookie) {
			p->kept = *k;
			p->checksum = checksum;
			mine = 1;
		}
		bpf_spin_unlock(&p->lock);
	}
	if (!mine)
		return bpf_sk_storage_get(&stored, sk, k, BPF_SK_STORAGE_GET_F_CREATE) != 0;
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
	return 1;
}

// forget frees the place of a connection that ends. A socket that its program
// disconnects (connect(2), AF_UNSPEC) keeps the policy, and is likely to be
// connected again: what it had goes to its storage. One that ends by an error
// or by close(2) is not, and storage would cost every one of them dear.
static __always_inline void forget(struct bpf_sock_ops *ctx)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	struct place *p = place_of(cookie);
	struct bpf_sock *sk = ctx->sk;
	struct tcp_sock *tp;
	struct sock *s;
	struct kept k;

	if (!p || p->kept.cookie != cookie || !sk)
		return;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return;
	s = &tp->inet_conn.icsk_inet.sk;
	if (s->sk_socket && !s->sk_err && s->sk_shutdown != SHUTDOWN_MASK) {
		k = p->kept;
		if (!bpf_sk_storage_get(&stored, sk, &k, BPF_SK_STORAGE_GET_F_CREATE))
			return;
	}
	p->kept.cookie = 0;
}

// GIVEN tells the hooks of the cgroups above, which the kernel runs afterwards
// with the same context, that the connection has its policy: the nearest
// cgroup's holds. The kernel takes no reply here.
#define GIVEN 0xdeadbee7

static __always_inline void give(struct bpf_sock_ops *ctx, const volatile struct rule *r, __u32 rule)
{
	struct bpf_sock *sk = ctx->sk;
	struct kept k = { .rule = rule };
	struct kept *again;
	struct tcp_sock *tp;
	__u64 timeout;
	__s32 error;

	if (!sk)
		return;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return;
	read_settings(tp, &k.before);
	timeout = r->user_timeout_ms < 0 ? k.before.user_timeout_ms : r->user_timeout_ms;
	if (timeout && timeout <= (r->idle + (__u64)r->interval * (r->probes - 1)) * 1000) {
		count(REFUSED);
		return;
	}
	k.cookie = bpf_get_socket_cookie(ctx);
	k.netns = tp->inet_conn.icsk_inet.sk.__sk_common.skc_net.net->ns.inum;
	again = bpf_sk_storage_get(&stored, sk, 0, 0);
	if (again && again->cookie) {
		again->rule = rule;
	} else if (!keep(ctx, sk, &k)) {
		count(FAILED); // what cannot be put back is not changed
		return;
	}
	ctx->reply = GIVEN;
	error = put(ctx, IPPROTO_TCP, TCP_KEEPINTVL, r->interval);
	error = error ?: put(ctx, IPPROTO_TCP, TCP_KEEPCNT, r->probes);
	error = error ?: put(ctx, IPPROTO_TCP, TCP_KEEPIDLE, r->idle);
	if (r->user_timeout_ms >= 0 && r->user_timeout_ms != k.before.user_timeout_ms)
		error = error ?: put(ctx, IPPROTO_TCP, TCP_USER_TIMEOUT, r->user_timeout_ms);
	if (!k.before.keepalive)
		error = error ?: put(ctx, SOL_SOCKET, SO_KEEPALIVE, 1);
	count(error ? FAILED : APPLIED);
}

SEC("sockops")
int greet(struct bpf_sock_ops *ctx)
{
	__u32 rule;

	switch (ctx->op) {
	case BPF_SOCK_OPS_STATE_CB:
		if (ctx->args[1] == TCP_CLOSE)
			forget(ctx);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		if (ctx->reply == GIVEN)
			break;
		rule = find(ctx);
		if (rule < MAX_RULES)
			give(ctx, &rules[rule], rule);
	}
	return 1;
}

// cookie_of reads what no helper gives to programs of this type, which may not
// add to a pointer to a socket either: as a number it is one no more.
static __always_inline __u64 cookie_of(struct bpf_sock *sk)
{
	struct sock *number = 0;

	bpf_probe_read_kernel(&number, sizeof(number), &sk);
	return BPF_CORE_READ(number, __sk_common.skc_cookie.counter);
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

static __always_inline struct kept *kept_of(struct bpf_sock *sk)
{
	__u64 cookie = cookie_of(sk);
	struct place *p = place_of(cookie);

	if (p && cookie && p->kept.cookie == cookie)
		return &p->kept;
	return bpf_sk_storage_get(&stored, sk, 0, 0);
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
	const volatile struct rule *r;
	struct bpf_sock *sk = ctx->sk;
	struct kept *k;
	__u64 timeout;

	if ((!of_socket && !of_tcp) || !sk)
		goto pass;
	k = kept_of(sk);
	if (!k || k->rule >= MAX_RULES || ctx->optlen < (int)sizeof(int) || (void *)(value + 1) > ctx->optval_end)
		goto pass;
	r = &rules[k->rule];
	if (!r->enforce)
		goto pass;
	if (of_socket) {
		if (!*value)
			return swallow(ctx, LIMITED_KEEPALIVE);
		goto pass;
	}
	switch (ctx->optname) {
	case TCP_KEEPIDLE:
		if (*value > (int)r->idle && *value <= MAX_TCP_KEEPIDLE)
			return limit(ctx, value, r->idle, LIMITED_IDLE);
		break;
	case TCP_KEEPINTVL:
		if (*value > (int)r->interval && *value <= MAX_TCP_KEEPINTVL)
			return limit(ctx, value, r->interval, LIMITED_INTERVAL);
		break;
	case TCP_KEEPCNT:
		if (*value > (int)r->probes && *value <= MAX_TCP_KEEPCNT)
			return limit(ctx, value, r->probes, LIMITED_PROBES);
		break;
	case TCP_USER_TIMEOUT:
		// The kernel looks at it instead of the number of probes.
		timeout = (r->idle + (__u64)r->interval * r->probes) * 1000;
		if (r->user_timeout_ms > 0 && (*value == 0 || *value > r->user_timeout_ms))
			return limit(ctx, value, r->user_timeout_ms, LIMITED_USER_TIMEOUT);
		if (r->user_timeout_ms <= 0 && *value > 0 && *value > timeout)
			return swallow(ctx, LIMITED_USER_TIMEOUT);
	}
pass:
	// The kernel shows no more than a page, and takes 0 for "unchanged".
	if (ctx->optlen > 4096)
		ctx->optlen = 0;
	return 1;
}

// list_placed writes the places that are taken.
SEC("iter/bpf_map_elem")
int list_placed(struct bpf_iter__bpf_map_elem *ctx)
{
	struct place *p = ctx->value;

	if (p && p->kept.cookie)
		bpf_seq_write(ctx->meta->seq, p, sizeof(*p));
	return 0;
}

// list_stored writes what is stored with sockets, in all network namespaces.
SEC("iter/bpf_sk_storage_map")
int list_stored(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct sock *sk = ctx->sk;
	void *value = ctx->value;

	if (sk && value)
		bpf_seq_write(ctx->meta->seq, value, sizeof(struct kept));
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
