// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//
// Ends the TCP sockets in a table that have received nothing since they were
// seen. The kernel visits the network namespace of the reader, and calls the
// program with the socket locked (bpf_iter_tcp_seq_show): what arrives between
// the comparison and the end is what arrives while these few instructions run.
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

enum outcome { UNSEEN, ENDED, HEARD, REFUSED };

struct place {
	__u64 cookie; // 0 where there is none
	__u32 segs_in; // when it was seen
	__u32 silence; // in jiffies: for as long it must have received nothing
	__u16 outcome;
	__s16 error; // negative errno, when it is refused
};

#include "table.h"

extern int bpf_sock_destroy(struct sock_common *sk) __ksym;

SEC("iter/tcp")
int end(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	struct tcp_sock *tp;
	struct place *p;
	__u32 now;
	int error;

	if (!skc)
		return 0;
	p = find(skc);
	if (!p || p->outcome != UNSEEN) // a socket may be visited twice
		return 0;
	tp = bpf_skc_to_tcp_sock(skc);
	if (!tp)
		return 0;
	now = (__u32)bpf_jiffies64();
	// Connected anew it has the same cookie, and perhaps the same count.
	if (tp->segs_in != p->segs_in || skc->skc_state == TCP_SYN_SENT || now - tp->rcv_tstamp < p->silence ||
	    now - tp->inet_conn.icsk_ack.lrcvtime < p->silence) {
		p->outcome = HEARD;
		return 0;
	}
	error = bpf_sock_destroy(skc);
	p->error = error;
	p->outcome = error ? REFUSED : ENDED;
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
