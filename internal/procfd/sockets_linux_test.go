package procfd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/internal/conn"
)

type socket struct {
	inode uint32
	owner conn.Owner
}

func collect(t testing.TB, f *FS, opts SocketsOptions) (map[socket]bool, Stats) {
	t.Helper()
	var mu sync.Mutex
	got := map[socket]bool{}
	stats, err := f.Sockets(context.Background(), opts, func(_ int, inode uint32, o conn.Owner) {
		mu.Lock()
		defer mu.Unlock()
		if s := (socket{inode, o}); got[s] {
			t.Errorf("%v found twice", s)
		} else {
			got[s] = true
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return got, stats
}

// plain is the way of the standard library.
func plain(t testing.TB, root string, pid int32) map[socket]bool {
	t.Helper()
	folder := filepath.Join(root, strconv.Itoa(int(pid)), "fd")
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	got := map[socket]bool{}
	for _, e := range entries {
		link, err := os.Readlink(filepath.Join(folder, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if text, ok := strings.CutPrefix(link, "socket:["); ok {
			inode, err := strconv.ParseUint(strings.TrimSuffix(text, "]"), 10, 32)
			if err != nil {
				t.Fatal(err)
			}
			fd, err := strconv.Atoi(e.Name())
			if err != nil {
				t.Fatal(err)
			}
			got[socket{uint32(inode), conn.Owner{PID: pid, FD: int32(fd)}}] = true
		}
	}
	return got
}

func TestSocketsOfFixture(t *testing.T) {
	root := t.TempDir()
	for name, target := range map[string]string{
		"7/fd/0":    "/dev/null",
		"7/fd/3":    "socket:[123]",
		"7/fd/4":    "socket:[4294967295]",
		"7/fd/5":    "socket:[4294967296]", // no inode of Linux
		"7/fd/6":    "socket:[12x]",
		"7/fd/7":    "socket:[]",
		"7/fd/8":    "anon_inode:[eventpoll]",
		"7/fd/9x":   "socket:[9]",
		"8/fd/3":    "socket:[123]",
		"9/fd/3":    "pipe:[123]",
		"self/fd/3": "socket:[124]",
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, path); err != nil {
			t.Fatal(err)
		}
	}
	got, stats := collect(t, New(root), SocketsOptions{})
	want := map[socket]bool{
		{123, conn.Owner{PID: 7, FD: 3}}:        true,
		{4294967295, conn.Owner{PID: 7, FD: 4}}: true,
		{123, conn.Owner{PID: 8, FD: 3}}:        true,
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if want := (Stats{Processes: 3, Descriptors: 9}); stats != want {
		t.Errorf("stats %+v, want %+v", stats, want)
	}
	if got, _ := collect(t, New(root), SocketsOptions{PIDs: []int32{8, 4711}}); len(got) != 1 {
		t.Errorf("of process 8 alone got %v", got)
	}
	if got, stats := collect(t, New(root), SocketsOptions{PIDs: []int32{}}); len(got) != 0 || stats != (Stats{}) {
		t.Errorf("of no process got %v, %+v", got, stats)
	}
}

func TestSocketsWithoutRoot(t *testing.T) {
	_, err := New(filepath.Join(t.TempDir(), "none")).Sockets(context.Background(), SocketsOptions{}, nil)
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestSocketsCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := New("/proc").Sockets(ctx, SocketsOptions{}, func(int, uint32, conn.Owner) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestSocketsOfRealProcesses(t *testing.T) {
	a, b := holder(t, 40), holder(t, 3000)
	want := plain(t, "/proc", a)
	maps.Copy(want, plain(t, "/proc", b))
	if len(want) < 3040 {
		t.Fatalf("the holders hold %d sockets", len(want))
	}
	for _, workers := range []int{1, 2, 5} {
		got, stats := collect(t, New("/proc"), SocketsOptions{PIDs: []int32{a, b}, Workers: workers})
		if !maps.Equal(got, want) {
			t.Errorf("%d workers: got %d sockets, want %d", workers, len(got), len(want))
		}
		if stats.Processes != 2 || stats.Hidden != 0 || stats.Vanished != 0 || stats.Descriptors < len(want) {
			t.Errorf("%d workers: %+v", workers, stats)
		}
	}
	all, _ := collect(t, New("/proc"), SocketsOptions{})
	for s := range want {
		if !all[s] {
			t.Fatalf("%v is not among all", s)
		}
	}
}

// One huge process must not be the work of one thread.
func TestSocketsSharesOneProcess(t *testing.T) {
	pid := holder(t, 4000)
	var by [2]int
	_, err := New("/proc").Sockets(context.Background(), SocketsOptions{PIDs: []int32{pid}, Workers: 2}, func(worker int, _ uint32, _ conn.Owner) {
		by[worker]++
		time.Sleep(10 * time.Microsecond)
	})
	if err != nil {
		t.Fatal(err)
	}
	if by[0] == 0 || by[1] == 0 {
		t.Errorf("the workers found %v", by)
	}
}

func TestSocketsAllocatesNothingPerDescriptor(t *testing.T) {
	pid := holder(t, 3000)
	n := testing.AllocsPerRun(3, func() {
		if _, err := New("/proc").Sockets(context.Background(), SocketsOptions{PIDs: []int32{pid}, Workers: 2}, func(int, uint32, conn.Owner) {}); err != nil {
			t.Fatal(err)
		}
	})
	if n > 100 {
		t.Errorf("%v allocations for 3000 sockets", n)
	}
}

func TestSocketsHidden(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to become another user")
	}
	out, err := asNobody(command("look")).Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(out), "\n")
	var own, hidden int
	if _, err := fmt.Sscan(lines[0], &own, &hidden); err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	if own == 0 || hidden == 0 {
		t.Errorf("nobody sees %d sockets of its own, %d processes hidden", own, hidden)
	}
	for _, line := range lines[1:3] {
		if !strings.Contains(line, "CAP_SYS_PTRACE") {
			t.Errorf("no capability named in %q", line)
		}
	}
}

// Processes and descriptors come and go while they are read: what stays is
// found, what goes is no error, and nothing of ours stays open.
func TestSocketsInChurn(t *testing.T) {
	steady := holder(t, 600)
	want := plain(t, "/proc", steady)
	before := ownDescriptors(t)
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			_ = exec.CommandContext(ctx, "true").Run()
		}
	})
	wg.Go(func() {
		for ctx.Err() == nil {
			var fds []int
			for range 400 {
				if fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err == nil {
					fds = append(fds, fd)
				}
			}
			for _, fd := range slices.Backward(fds) {
				_ = unix.Close(fd)
			}
		}
	})
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		got := map[socket]bool{}
		var mu sync.Mutex
		if _, err := New("/proc").Sockets(ctx, SocketsOptions{Workers: 3}, func(_ int, inode uint32, o conn.Owner) {
			mu.Lock()
			defer mu.Unlock()
			got[socket{inode, o}] = true
		}); err != nil {
			t.Error(err)
		}
		for s := range want {
			if !got[s] {
				t.Fatalf("%v was there all the time and not found", s)
			}
		}
	}
	stop()
	wg.Wait()
	if after := ownDescriptors(t); after != before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
}

func ownDescriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func BenchmarkSockets(b *testing.B) {
	const n = 10000
	pid := holder(b, n)
	for _, workers := range []int{1, 2} {
		b.Run(fmt.Sprintf("workers=%d", workers), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := New("/proc").Sockets(context.Background(), SocketsOptions{PIDs: []int32{pid}, Workers: workers}, func(int, uint32, conn.Owner) {}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/socket")
		})
	}
	b.Run("plain", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			plain(b, "/proc", pid)
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/socket")
	})
}
