// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//
// What a socket holds of a keepalive policy, as all programs here hand it over.
#ifndef DEADPEER_SETTINGS_H
#define DEADPEER_SETTINGS_H

// settings are a socket's own values beside those of its host. Times are in
// jiffies but for the user timeout; an own value of 0 means the host's.
struct settings {
	__u32 idle;
	__u32 interval;
	__u32 host_idle;
	__u32 host_interval;
	__u32 user_timeout_ms;
	__u8 probes;
	__u8 host_probes;
	__u8 keepalive;
	__u8 unused;
};

static __always_inline void read_settings(struct tcp_sock *tp, struct settings *s)
{
	struct sock_common *skc = &tp->inet_conn.icsk_inet.sk.__sk_common;
	struct net *net = skc->skc_net.net;

	s->idle = tp->keepalive_time;
	s->interval = tp->keepalive_intvl;
	s->probes = tp->keepalive_probes;
	s->user_timeout_ms = tp->inet_conn.icsk_user_timeout;
	s->keepalive = skc->skc_flags >> bpf_core_enum_value(enum sock_flags, SOCK_KEEPOPEN) & 1;
	s->host_idle = net->ipv4.sysctl_tcp_keepalive_time;
	s->host_interval = net->ipv4.sysctl_tcp_keepalive_intvl;
	s->host_probes = net->ipv4.sysctl_tcp_keepalive_probes;
	s->unused = 0;
}

#endif
