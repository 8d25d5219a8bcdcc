// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//
// Reads and changes the settings of the TCP sockets whose cookie is in a table.
// The kernel visits the network namespace of the reader, and calls the program
// with the socket locked (bpf_iter_tcp_seq_show): neither its timers nor its
// owner see what is between two calls. A socket may be visited twice, and is
// changed once.
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include "settings.h"

struct place {
	__u64 cookie; // 0 where there is none
	__u32 change; // DONE when it has been made
	__u32 target; // its number
};

#include "table.h"

enum { LOOK, SET, RESTORE };

// change is what is wanted of sockets. Times are in seconds but for the user
// timeout; 0 leaves idle, interval and probes as they are, negative the user
// timeout. Where the socket must be as was_ says, it is else left alone.
struct change {
	__u32 idle;
	__u32 interval;
	__s32 user_timeout_ms;
	__u8 probes;
	__u8 keepalive;
	__u8 op;
	__u8 conditional;
	__u32 was_idle;
	__u32 was_interval;
	__u32 was_user_timeout_ms;
	__u8 was_probes;
	__u8 was_keepalive;
	__u8 unused[2];
};

// result is written one after the other, as sockets are visited: what costs is
// memory that is in no cache. Its size is a multiple of 8, or else elements of
// an array would have gaps.
struct result {
	__u32 target;
	struct settings before;
	__s16 error; // negative errno
	__u8 differs; // from what it must be
	__u8 failed;  // to have what it was given, though nothing was refused
};

#define DONE (~0u)

const volatile __u32 hz = 250;
volatile __u32 count; // of the results

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct change);
} changes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct result);
} results SEC(".maps");

static __always_inline __s32 put(struct tcp_sock *tp, int level, int option, int value)
{
	return bpf_setsockopt(tp, level, option, &value, sizeof(value));
}

// fatal: the kernel would give up before the probes are spent
// (tcp_keepalive_timer looks at the user timeout instead of the count).
static __always_inline int fatal(const struct change *c, __u64 idle, __u64 interval, __u64 probes, __u32 had)
{
	__u64 timeout = c->user_timeout_ms < 0 ? had : c->user_timeout_ms;

	return timeout && timeout <= (idle + interval * (probes - 1)) * 1000;
}

// apply leaves the socket in a state that a living peer survives. With no
// probe unanswered TCP_KEEPIDLE, last, only makes the kernel probe at once if
// the idle time is over. With probes unanswered that look could end the
// connection while the answer is on its way: then keepalive goes off first,
// and switching it on arms a whole idle time (tcp_set_keepalive).
static __always_inline __s32 apply(struct tcp_sock *tp, const struct change *c, struct result *result)
{
	struct settings *b = &result->before;
	__u32 idle = (b->idle ?: b->host_idle) / hz;
	__u32 interval = (b->interval ?: b->host_interval) / hz;
	__u32 probes = b->probes ?: b->host_probes;
	int set_idle = c->idle != 0, set_interval = c->interval != 0, set_probes = c->probes != 0;
	int set_timeout = c->user_timeout_ms >= 0;
	int unanswered = tp->inet_conn.icsk_probes_out != 0;
	int off, error = 0;

	if (c->conditional && (idle != c->was_idle || interval != c->was_interval || probes != c->was_probes ||
			       b->user_timeout_ms != c->was_user_timeout_ms || b->keepalive != c->was_keepalive)) {
		result->differs = 1;
		return 0;
	}
	if (c->op == RESTORE) {
		set_idle = set_idle && c->idle != idle;
		set_interval = set_interval && c->interval != interval;
		set_probes = set_probes && c->probes != probes;
		set_timeout = set_timeout && c->user_timeout_ms != b->user_timeout_ms;
		if (c->keepalive == b->keepalive && !set_idle && !set_interval && !set_probes && !set_timeout)
			return 0;
	} else {
		if (fatal(c, c->idle ?: idle, c->interval ?: interval, c->probes ?: probes, b->user_timeout_ms))
			return -EINVAL;
		// Even the same value would make the timer fire.
		if (unanswered && b->keepalive && c->idle == idle)
			set_idle = 0;
	}
	off = b->keepalive && (!c->keepalive || (unanswered && (c->op == RESTORE || set_idle)));
	if (off)
		error = put(tp, SOL_SOCKET, SO_KEEPALIVE, 0);
	if (!error && set_timeout)
		error = put(tp, IPPROTO_TCP, TCP_USER_TIMEOUT, c->user_timeout_ms);
	if (!error && set_interval)
		error = put(tp, IPPROTO_TCP, TCP_KEEPINTVL, c->interval);
	if (!error && set_probes)
		error = put(tp, IPPROTO_TCP, TCP_KEEPCNT, c->probes);
	// On before TCP_KEEPIDLE, which then counts from the time already idle.
	if (!error && c->keepalive && !b->keepalive && !unanswered && c->op == SET)
		error = put(tp, SOL_SOCKET, SO_KEEPALIVE, 1);
	if (!error && set_idle)
		error = put(tp, IPPROTO_TCP, TCP_KEEPIDLE, c->idle);
	if (c->keepalive && (off || !b->keepalive)) {
		__s32 on = put(tp, SOL_SOCKET, SO_KEEPALIVE, 1);

		error = error ?: on;
	}
	return error;
}

// restored reports whether the socket has what it was given back.
static __always_inline int restored(struct tcp_sock *tp, const struct change *c)
{
	struct settings now;

	read_settings(tp, &now);
	return now.keepalive == c->keepalive && (!c->idle || c->idle == (now.idle ?: now.host_idle) / hz) &&
	       (!c->interval || c->interval == (now.interval ?: now.host_interval) / hz) &&
	       (!c->probes || c->probes == (now.probes ?: now.host_probes)) &&
	       (c->user_timeout_ms < 0 || c->user_timeout_ms == now.user_timeout_ms);
}

SEC("iter/tcp")
int policy(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	struct tcp_sock *tp;
	struct change *c;
	struct result *r;
	struct place *p;
	__u32 at;

	if (!skc)
		return 0;
	p = find(skc);
	if (!p)
		return 0;
	tp = bpf_skc_to_tcp_sock(skc);
	if (!tp)
		return 0;
	at = count;
	c = bpf_map_lookup_elem(&changes, &p->change); // none if it has been made
	r = bpf_map_lookup_elem(&results, &at);
	if (!c || !r)
		return 0;
	p->change = DONE;
	count = at + 1;
	__builtin_memset(r, 0, sizeof(*r));
	r->target = p->target;
	read_settings(tp, &r->before);
	if (c->op != LOOK)
		r->error = apply(tp, c, r);
	if (c->op == RESTORE && !r->error && !r->differs)
		r->failed = !restored(tp, c);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
