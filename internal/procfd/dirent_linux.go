package procfd

import (
	"bytes"
	"encoding/binary"
	"math"
	"unsafe"

	"golang.org/x/sys/unix"
)

// linkSize has room for "socket:[4294967295]" and one byte more, by which a
// longer link shows.
const linkSize = 20

// direntName is the offset of d_name in struct linux_dirent64 (getdents64(2)):
// d_ino, d_off, d_reclen, d_type.
const direntName = 8 + 8 + 2 + 1

// nextEntry splits the first name, with the NUL that ends it, off a buffer
// that getdents64 filled. The name is nil when there is none or it makes no
// sense.
func nextEntry(buf []byte) (name, rest []byte) {
	if len(buf) < direntName {
		return nil, nil
	}
	size := int(binary.NativeEndian.Uint16(buf[16:]))
	if size <= direntName || size > len(buf) {
		return nil, nil
	}
	name = buf[direntName:size]
	end := bytes.IndexByte(name, 0)
	if end < 0 {
		return nil, nil
	}
	return name[:end+1], buf[size:]
}

// parseSocket reads "socket:[N]", what a descriptor of a socket links to
// (sockfs_dname of net/socket.c).
func parseSocket(link []byte) (inode uint32, ok bool) {
	number, ok := bytes.CutPrefix(link, []byte("socket:["))
	if !ok || len(number) < 2 || number[len(number)-1] != ']' {
		return 0, false
	}
	n, ok := parseUint(number[:len(number)-1])
	return uint32(n), ok && n <= math.MaxUint32
}

func parseInt32(b []byte) (int32, bool) {
	n, ok := parseUint(b)
	return int32(n), ok && n <= math.MaxInt32
}

// parseUint reads up to ten digits, and nothing else.
func parseUint(b []byte) (n uint64, ok bool) {
	if len(b) == 0 || len(b) > 10 {
		return 0, false
	}
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + uint64(c-'0')
	}
	return n, true
}

// openDir is openat(2) of a NUL-terminated name, without the copy that
// unix.Openat makes of it.
func openDir(at int, name []byte) (int, unix.Errno) {
	for {
		fd, _, errno := unix.Syscall6(unix.SYS_OPENAT, uintptr(at), uintptr(unsafe.Pointer(&name[0])),
			unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0, 0, 0)
		if errno != unix.EINTR {
			return int(fd), errno
		}
	}
}

// readlinkat is readlinkat(2) of a NUL-terminated name, where it lies in the
// buffer of getdents64. It is never stat(2), which would go to the file behind
// the link and hang with its server.
func readlinkat(at int, name, buf []byte) (int, unix.Errno) {
	n, _, errno := unix.Syscall6(unix.SYS_READLINKAT, uintptr(at), uintptr(unsafe.Pointer(&name[0])),
		uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), 0, 0)
	return int(n), errno
}
