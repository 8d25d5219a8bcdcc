package cli

import (
	"path"
	"syscall"
)

// cgroupID is the id of a cgroup v2: the inode of its folder, on a pure host
// and on a hybrid one.
func cgroupID(name string) (uint64, bool) {
	for _, mount := range [...]string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var fs syscall.Statfs_t
		var st syscall.Stat_t
		dir := path.Join(mount, path.Clean("/"+name))
		const cgroup2Magic = 0x63677270 // CGROUP2_SUPER_MAGIC
		if syscall.Statfs(dir, &fs) == nil && int64(fs.Type) == cgroup2Magic && syscall.Stat(dir, &st) == nil {
			return st.Ino, true
		}
	}
	return 0, false
}
