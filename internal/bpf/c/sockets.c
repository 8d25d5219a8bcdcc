// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//
// Two lists that are joined outside: the TCP connections of the reader's
// network namespace, and the descriptors that are sockets, of the tasks of the
// reader's pid namespace. Each touches as little of what it passes as it can:
// what they cost is memory that is in no cache. When a record does not fit, a
// program runs again for it: it writes all or nothing.
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include "settings.h"

// handle names a struct socket for as long as it lives: by its inode, of which
// the numbers wrap, and by where it lies.
struct handle {
	__u32 inode; // 0 where there is no struct socket
	__u32 place;
};

// connection is what sock_diag tells of one, and its settings. Times are in
// jiffies but for rtt and rttvar, which are in microseconds.
struct connection {
	__u64 cookie;
	__u64 cgroup;
	struct handle handle;
	__u32 local[4]; // network order, IPv4 mapped
	__u32 peer[4];
	__u16 local_port;
	__u16 peer_port;
	__u8 family;
	__u8 state;
	__u8 timer;
	__u8 retransmits;
	__u32 uid;
	__u32 interface;
	__u32 mark;
	__u32 now;
	__u32 expires;
	// What follows is told where full is not 0.
	__u32 recv_queue;
	__u32 send_queue;
	__u32 rto;
	__u32 rtt;
	__u32 rttvar;
	__u32 data_sent; // ago, and so are these
	__u32 data_recv;
	__u32 ack_recv;
	__u32 segs_in;
	__u32 segs_out;
	__u32 unacked;
	__u32 send_window;
	struct settings settings;
	__u8 probes;
	__u8 backoff;
	__u8 mptcp;
	__u8 full;
	__u8 reuse;
	__u8 unused[3];
};

struct descriptor {
	struct handle handle;
	__u32 pid;
	__u32 fd;
};

// These keep the types in BTF.
const struct connection *connection_for_go __attribute__((unused));
const struct descriptor *descriptor_for_go __attribute__((unused));

static __always_inline __u32 place_of(const void *pointer)
{
	__u64 at;

	// The verifier allows no arithmetic with pointers to what the kernel has.
	bpf_probe_read_kernel(&at, sizeof(at), pointer);
	return at >> 6; // of a cache line
}

// The timers of a connection have moved between structs.
static __always_inline struct timer_list *retransmit_timer(struct tcp_sock *tp)
{
	struct sock___moved *sk = (void *)tp;

	if (bpf_core_field_exists(sk->tcp_retransmit_timer))
		return &sk->tcp_retransmit_timer;
	return &tp->inet_conn.icsk_retransmit_timer;
}

static __always_inline struct timer_list *keepalive_timer(struct tcp_sock *tp)
{
	struct inet_connection_sock___moved *icsk = (void *)tp;

	if (bpf_core_field_exists(icsk->icsk_keepalive_timer))
		return &icsk->icsk_keepalive_timer;
	return &tp->inet_conn.icsk_inet.sk.sk_timer;
}

static __always_inline __u32 until(unsigned long then, unsigned long now)
{
	long left = then - now;

	return left < 0 ? 0 : left;
}

static __always_inline __u32 retransmission(struct tcp_sock *tp, unsigned long now)
{
	struct inet_connection_sock___before_6_16 *icsk = (void *)tp;

	if (bpf_core_field_exists(icsk->icsk_timeout))
		return until(icsk->icsk_timeout, now);
	return until(retransmit_timer(tp)->expires, now);
}

// read_timer does what inet_sk_diag_fill does.
static __always_inline void read_timer(struct tcp_sock *tp, struct connection *c, unsigned long now)
{
	struct inet_connection_sock *icsk = &tp->inet_conn;

	switch (icsk->icsk_pending) {
	case ICSK_TIME_RETRANS:
	case ICSK_TIME_LOSS_PROBE:
	case ICSK_TIME_REO_TIMEOUT:
		c->timer = 1;
		c->retransmits = icsk->icsk_retransmits;
		c->expires = retransmission(tp, now);
		return;
	case ICSK_TIME_PROBE0:
		c->timer = 4;
		c->retransmits = icsk->icsk_probes_out;
		c->expires = retransmission(tp, now);
		return;
	}
	if (keepalive_timer(tp)->entry.pprev) { // timer_pending
		c->timer = 2;
		c->retransmits = icsk->icsk_probes_out;
		c->expires = until(keepalive_timer(tp)->expires, now);
	}
}

static __always_inline __u32 inode_of(struct sock *sk)
{
	struct sock___with_inode *known = (void *)sk;
	struct socket_alloc *alloc = (void *)sk->sk_socket;
	unsigned long inode = 0;

	if (bpf_core_field_exists(known->sk_ino))
		return known->sk_ino;
	bpf_core_read(&inode, sizeof(inode), &alloc->vfs_inode.i_ino);
	return inode;
}

static __always_inline void read_full(struct tcp_sock *tp, struct connection *c, unsigned long now)
{
	struct inet_connection_sock *icsk = &tp->inet_conn;
	struct tcp_sock___mptcp *multi = (void *)tp;
	struct sock *sk = &icsk->icsk_inet.sk;
	__s32 unread = tp->rcv_nxt - tp->copied_seq;

	c->full = 1;
	c->reuse = BPF_CORE_READ_BITFIELD(&sk->__sk_common, skc_reuse);
	if (sk->sk_socket) {
		c->handle.inode = inode_of(sk);
		c->handle.place = place_of(&sk->sk_socket);
	}
	if (bpf_core_field_exists(sk->sk_cgrp_data))
		c->cgroup = sk->sk_cgrp_data.cgroup->kn->id;
	c->uid = sk->sk_uid.val;
	c->mark = sk->sk_mark;
	c->recv_queue = unread < 0 ? 0 : unread;
	c->send_queue = tp->write_seq - tp->snd_una;
	c->rto = icsk->icsk_rto;
	c->rtt = tp->srtt_us >> 3;
	c->rttvar = tp->mdev_us >> 2;
	c->data_sent = (__u32)now - tp->lsndtime;
	c->data_recv = (__u32)now - icsk->icsk_ack.lrcvtime;
	c->ack_recv = (__u32)now - tp->rcv_tstamp;
	c->segs_in = tp->segs_in;
	c->segs_out = tp->segs_out;
	c->unacked = tp->packets_out;
	c->send_window = tp->snd_wnd;
	c->probes = icsk->icsk_probes_out;
	c->backoff = icsk->icsk_backoff;
	if (bpf_core_field_exists(multi->is_mptcp))
		c->mptcp = multi->is_mptcp;
	read_timer(tp, c, now);
	read_settings(tp, &c->settings);
}

SEC("iter/tcp")
int connections(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	struct tcp_timewait_sock *tw;
	struct tcp_request_sock *req;
	struct tcp_sock *tp;
	struct connection c;
	unsigned long now;

	if (!skc || skc->skc_state == TCP_LISTEN)
		return 0;
	__builtin_memset(&c, 0, sizeof(c));
	c.cookie = skc->skc_cookie.counter;
	if (!c.cookie)
		c.cookie = bpf_get_socket_cookie(skc);
	now = bpf_jiffies64();
	c.now = now;
	c.family = skc->skc_family;
	c.state = skc->skc_state;
	c.local_port = skc->skc_num;
	c.peer_port = bpf_ntohs(skc->skc_dport);
	c.interface = skc->skc_bound_dev_if;
	if (c.family == AF_INET) {
		c.local[2] = c.peer[2] = bpf_htonl(0xffff);
		c.local[3] = skc->skc_rcv_saddr;
		c.peer[3] = skc->skc_daddr;
	} else {
		bpf_core_read(c.local, sizeof(c.local), &skc->skc_v6_rcv_saddr);
		bpf_core_read(c.peer, sizeof(c.peer), &skc->skc_v6_daddr);
	}
	if (c.state == TCP_TIME_WAIT) { // inet_twsk_diag_fill
		tw = bpf_skc_to_tcp_timewait_sock(skc);
		if (!tw)
			return 0;
		c.state = tw->tw_sk.tw_substate;
		c.timer = 3;
		c.expires = until(tw->tw_sk.tw_timer.expires, now);
		if (bpf_core_field_exists(tw->tw_sk.tw_mark))
			c.mark = tw->tw_sk.tw_mark;
	} else if (c.state == TCP_NEW_SYN_RECV) { // inet_req_diag_fill
		req = bpf_skc_to_tcp_request_sock(skc);
		if (!req)
			return 0;
		c.state = TCP_SYN_RECV;
		c.timer = 1;
		c.retransmits = req->req.req.num_retrans;
		c.expires = until(req->req.req.rsk_timer.expires, now);
		c.mark = req->req.ir_mark;
	} else {
		tp = bpf_skc_to_tcp_sock(skc);
		if (!tp)
			return 0;
		read_full(tp, &c, now);
	}
	bpf_seq_write(ctx->meta->seq, &c, sizeof(c));
	return 0;
}

// tgid_seen is the process's number in the pid namespace of the reader.
static __always_inline __u32 tgid_seen(struct task_struct *task)
{
	unsigned int level = bpf_get_current_task_btf()->thread_pid->level;
	struct pid *pid = task->thread_pid;
	int nr = 0;

	// A flexible array in some kernels, an array of one in others.
	bpf_core_read(&nr, sizeof(nr),
		      (void *)pid + bpf_core_field_offset(struct pid, numbers) +
			      level * bpf_core_type_size(struct upid) +
			      bpf_core_field_offset(struct upid, nr));
	return nr;
}

// The kernel visits also those threads whose descriptors are not their
// process's (task_seq_get_next); they are left out, since neither procfs nor
// pidfd_getfd(2) reaches them by the process. What kind of socket it is shows
// in the join: looking would cost more.
SEC("iter/task_file")
int descriptors(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct descriptor d;

	if (!task || !file || task != task->group_leader || !bpf_sock_from_file(file))
		return 0;
	d.handle.inode = file->f_inode->i_ino;
	d.handle.place = place_of(&file->private_data);
	d.pid = tgid_seen(task);
	d.fd = ctx->fd;
	bpf_seq_write(ctx->meta->seq, &d, sizeof(d));
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
