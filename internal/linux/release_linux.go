// Package linux tells which Linux runs. What a kernel can do is tried, not
// read from its number: distributions bring features to older ones. The number
// serves where a kernel only behaves differently.
package linux

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Before reports whether the running Linux is older than major.minor (uname(2)).
// One whose release does not begin with two numbers is not.
func Before(major, minor int) bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	return before(unix.ByteSliceToString(u.Release[:]), major, minor)
}

func before(release string, major, minor int) bool {
	var m, n int
	if k, _ := fmt.Sscanf(release, "%d.%d", &m, &n); k != 2 {
		return false
	}
	return m < major || m == major && n < minor
}
