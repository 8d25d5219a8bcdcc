// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//
// One record for every descriptor that is a TCP socket. The kernel visits the
// tasks of the reader's pid namespace, and those threads whose descriptors are
// not their process's (task_seq_get_next); these are left out, since neither
// procfs nor pidfd_getfd(2) reaches them by the process. When a record does
// not fit, the program runs again for it: it writes all or nothing.
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include "settings.h"

struct record {
	__u64 cookie;
	__u32 netns;
	__u32 inode;
	__u32 pid;
	__u32 fd;
	__u32 uid;
	__u32 heard; // jiffies
	struct settings settings;
	__u32 local[4]; // network order, IPv4 mapped
	__u32 peer[4];
	__u16 local_port;
	__u16 peer_port;
	__u8 family;
	__u8 state;
	__u8 mptcp;
	__u8 unused[1];
	char comm[16];
};

const struct record *for_go __attribute__((unused)); // keeps the type in BTF

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

SEC("iter/task_file")
int sockets(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct record r = {};
	struct tcp_sock *tp;
	struct socket *sock;
	struct sock *sk;
	__u32 now;
	__s32 ack, data;

	if (!task || !file || task != task->group_leader)
		return 0;
	sock = bpf_sock_from_file(file);
	if (!sock)
		return 0;
	sk = sock->sk;
	if (!sk || (sk->__sk_common.skc_family != AF_INET && sk->__sk_common.skc_family != AF_INET6))
		return 0;
	r.inode = file->f_inode->i_ino;
	r.fd = ctx->fd;
	r.family = sk->__sk_common.skc_family;
	r.netns = sk->__sk_common.skc_net.net->ns.inum;
	if (sk->sk_protocol == IPPROTO_MPTCP) {
		// Its subflows are the TCP sockets; they bear its inode.
		r.mptcp = 1;
		goto out;
	}
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return 0;
	r.cookie = bpf_get_socket_cookie(sk);
	read_settings(tp, &r.settings);
	r.uid = sk->sk_uid.val;
	r.state = sk->__sk_common.skc_state;
	r.local_port = sk->__sk_common.skc_num;
	r.peer_port = bpf_ntohs(sk->__sk_common.skc_dport);
	if (r.family == AF_INET) {
		r.local[2] = r.peer[2] = bpf_htonl(0xffff);
		r.local[3] = sk->__sk_common.skc_rcv_saddr;
		r.peer[3] = sk->__sk_common.skc_daddr;
	} else {
		bpf_core_read(r.local, sizeof(r.local), &sk->__sk_common.skc_v6_rcv_saddr);
		bpf_core_read(r.peer, sizeof(r.peer), &sk->__sk_common.skc_v6_daddr);
	}
	now = bpf_jiffies64();
	ack = now - tp->rcv_tstamp;
	data = now - tp->inet_conn.icsk_ack.lrcvtime;
	r.heard = ack < data ? ack : data;
	if ((__s32)r.heard < 0)
		r.heard = 0; // it came after the tick was read
out:
	r.pid = tgid_seen(task);
	bpf_core_read(r.comm, sizeof(r.comm), &task->comm);
	bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
