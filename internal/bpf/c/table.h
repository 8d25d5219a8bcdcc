// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//
// The sockets that a program is to find, by cookie, in a table with open
// addressing: struct place, of the program's own, begins with the cookie.
// Cookies are given out one after the other, and are neighbours here as well:
// they are often neighbours in the kernel's tables too, whose order is that in
// which sockets are listed.
#ifndef DEADPEER_TABLE_H
#define DEADPEER_TABLE_H

#define NEIGHBOURS 16
#define PROBES 64 // of the table, at most

const volatile __u32 mask; // the size of the table, a power of two, minus one

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct place);
} table SEC(".maps");

static __always_inline struct place *find(struct sock_common *skc)
{
	__u64 cookie = skc->skc_cookie.counter;
	__u32 at = (__u32)(cookie / NEIGHBOURS * 0x9e3779b97f4a7c15ull >> 32) * NEIGHBOURS + cookie % NEIGHBOURS;

	if (!cookie) // none has been asked for: nobody can mean it
		return 0;
	for (int i = 0; i < PROBES; i++) {
		__u32 key = (at + i) & mask;
		struct place *p = bpf_map_lookup_elem(&table, &key);

		if (!p || !p->cookie)
			return 0;
		if (p->cookie == cookie)
			return p;
	}
	return 0;
}

#endif
