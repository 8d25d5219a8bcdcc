// Package programs attaches to servers that know nothing of deadpeer: those of
// Debian, a script, a Java program and a static binary. None is restarted.
package programs

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"deadpeer/internal/conn"
	"deadpeer/internal/engine"
	"deadpeer/internal/testnet"
	"deadpeer/keepalive"
)

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// program is a server, and a client's part of a conversation that leaves the
// connection open and idle.
type program struct {
	name  string
	find  string // the executable, a pattern
	port  uint16
	start func(t *testing.T, p *program, dir string) *exec.Cmd
	talk  func(c net.Conn) error
	says  bool // with which error a connection ended
	out   *output
}

// output collects what a program says.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func programs() []*program {
	return []*program{
		{name: "redis", find: "/usr/bin/redis-server", port: 6379, start: func(_ *testing.T, p *program, dir string) *exec.Cmd {
			return exec.Command(p.find, "--port", p.number(), "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--dir", dir)
		}, talk: exchange("PING\r\n", "+PONG")},
		{name: "nginx", find: "/usr/sbin/nginx", port: 8080, start: func(t *testing.T, p *program, dir string) *exec.Cmd {
			config := fmt.Sprintf("daemon off; master_process off; pid %[1]s/pid; error_log %[1]s/log; events {}\n"+
				"http { access_log off; keepalive_timeout 1h; client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f;"+
				" uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s; server { listen %[2]d; location / { return 200 hello; } } }\n", dir, p.port)
			ok(t, os.WriteFile(dir+"/conf", []byte(config), 0o644))
			return exec.Command(p.find, "-c", dir+"/conf", "-p", dir)
		}, talk: exchange("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200")},
		{name: "sshd", find: "/usr/sbin/sshd", port: 2222, start: func(t *testing.T, p *program, dir string) *exec.Cmd {
			ok(t, exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", dir+"/key").Run())
			// It wants a folder in /run: in one of its own.
			const own = `mount -t tmpfs tmpfs /run && mkdir /run/sshd && exec "$@"`
			return exec.Command("unshare", "--mount", "sh", "-c", own, "sh", p.find, "-D", "-e", "-f", "/dev/null",
				"-p", p.number(), "-h", dir+"/key", "-o", "LoginGraceTime=0", "-o", "PidFile=none")
		}, talk: exchange("SSH-2.0-test\r\n", "SSH-2.0-")},
		{name: "postgres", find: "/usr/lib/postgresql/*/bin/postgres", port: 5432, start: postgres, talk: func(c net.Conn) error {
			startup := append([]byte{0, 3, 0, 0}, "user\x00postgres\x00database\x00postgres\x00\x00"...)
			message := binary.BigEndian.AppendUint32(nil, uint32(len(startup)+4))
			return exchange(string(append(message, startup...)), "R")(c)
		}},
		{name: "python", find: "/usr/bin/python3", port: 7001, says: true, start: func(t *testing.T, p *program, _ string) *exec.Cmd {
			return exec.Command(p.find, must(filepath.Abs("testdata/server.py"))(t), p.number())
		}, talk: exchange("hello\n", "hello")},
		// A JRE of Debian compiles a single file, too (JEP 330).
		{name: "java", find: "/usr/bin/java", port: 7003, says: true, start: func(t *testing.T, p *program, _ string) *exec.Cmd {
			cmd := exec.Command(p.find, must(filepath.Abs("testdata/Server.java"))(t), p.number())
			cmd.Env = append(os.Environ(), "LC_ALL=C") // it tells errors apart by their texts
			return cmd
		}, talk: exchange("hello\n", "hello")},
		{name: "static", find: "/usr/bin/env", port: 7002, says: true, start: func(t *testing.T, p *program, dir string) *exec.Cmd {
			return exec.Command(goBuild(t, dir, "server"), p.number())
		}, talk: exchange("hello\n", "hello")},
	}
}

func (p *program) number() string { return strconv.Itoa(int(p.port)) }

// exchange sends and waits for what begins so.
func exchange(say, want string) func(net.Conn) error {
	return func(c net.Conn) error {
		if _, err := io.WriteString(c, say); err != nil {
			return err
		}
		got := make([]byte, len(want))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
			return fmt.Errorf("got %q, %w; want %q", got, err, want)
		}
		return nil
	}
}

// postgres does not run as root.
func postgres(t *testing.T, p *program, dir string) *exec.Cmd {
	as := &syscall.SysProcAttr{}
	if os.Geteuid() == 0 {
		u := must(user.Lookup("postgres"))(t)
		uid, gid := must(strconv.Atoi(u.Uid))(t), must(strconv.Atoi(u.Gid))(t)
		ok(t, os.Chown(dir, uid, gid))
		as.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	initdb := exec.Command(filepath.Join(filepath.Dir(p.find), "initdb"), "-D", dir+"/db", "-A", "trust", "-U", "postgres", "--no-sync")
	initdb.SysProcAttr, initdb.Dir = as, dir
	if out, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	ok(t, os.WriteFile(dir+"/db/pg_hba.conf", []byte("host all all 0.0.0.0/0 trust\n"), 0o644))
	cmd := exec.Command(p.find, "-D", dir+"/db", "-p", p.number(), "-c", "listen_addresses=*", "-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "tcp_keepalives_idle=600")
	cmd.SysProcAttr, cmd.Dir = as, dir
	return cmd
}

// begin starts a program on the server and gives the client's connection.
func (p *program) begin(t *testing.T, server, client *testnet.Host, addr netip.Addr) net.Conn {
	t.Helper()
	found, _ := filepath.Glob(p.find)
	if len(found) == 0 {
		if os.Getenv("CI") != "" {
			t.Fatalf("%s is not there", p.find)
		}
		t.Logf("left out: %s is not there", p.find)
		return nil
	}
	p.find, p.out = found[0], &output{}
	// Others must be able to enter the folder.
	dir := must(os.MkdirTemp("", "programs"))(t)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	ok(t, os.Chmod(dir, 0o755))
	cmd := p.start(t, p, dir)
	cmd.Stdout, cmd.Stderr = p.out, p.out
	cmd.WaitDelay = time.Second
	ok(t, server.Start(cmd))
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGINT)
		kill := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		kill.Stop()
	})
	to := netip.AddrPortFrom(addr, p.port).String()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		c, err := client.Dial(t.Context(), "tcp4", to)
		if err == nil {
			ok(t, c.SetDeadline(time.Now().Add(30*time.Second)))
			if err = p.talk(c); err == nil {
				ok(t, c.SetDeadline(time.Time{}))
				t.Cleanup(func() { _ = c.Close() })
				return c
			}
			_ = c.Close()
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %v\n%s", p.name, err, p.out)
		}
	}
}

// optionsOf reads the options of a connection's descriptor by another program.
func optionsOf(t *testing.T, o conn.Owner) string {
	t.Helper()
	out := must(exec.Command("/usr/bin/python3", "testdata/read.py", fmt.Sprint(o.PID), fmt.Sprint(o.FD)).CombinedOutput())(t)
	_, options, _ := strings.Cut(strings.TrimSpace(string(out)), fmt.Sprintf("%d %d ", o.PID, o.FD))
	return options
}

// Each program's connection gets the policy, gets its own back, and, attached
// again and cut off, ends when the forecast says.
func TestPrograms(t *testing.T) {
	if os.Geteuid() != 0 && os.Getenv("CI") == "" {
		t.Skip("PostgreSQL needs to be started by root, or as another user")
	}
	world := must(testnet.New(t.Context()))(t)
	t.Cleanup(func() { ok(t, world.Close()) })
	server, client := must(world.Host("server"))(t), must(world.Host("client"))(t)
	link := must(world.Connect(server, client))(t)
	list := programs()
	clients := make([]net.Conn, len(list))
	var wg sync.WaitGroup
	for i, p := range list {
		wg.Go(func() { clients[i] = p.begin(t, server, client, link.IPv4(server)) })
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}

	dir := filepath.Join(t.TempDir(), "run")
	e := engine.New(engine.Options{RuntimeDir: dir})
	req := engine.Request{Netns: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), server.NS().Fd()), Settings: true}
	filter := "state established and ( sport = :1"
	for i, p := range list {
		if clients[i] != nil {
			filter += " or sport = :" + p.number()
		}
	}
	req.Filter = must(conn.ParseFilter([]string{filter + " )"}, conn.Resolver{}))(t)

	owners := map[uint16]conn.Owner{}
	before := map[uint16]string{}
	for c := range must(e.Scan(t.Context(), req))(t).All() {
		if len(c.Owners) > 0 {
			owners[c.Sock.LocalPort] = c.Owners[0]
			before[c.Sock.LocalPort] = optionsOf(t, c.Owners[0])
		}
	}
	policy := keepalive.Policy{Idle: 2 * time.Second, Interval: time.Second, Probes: 3, UserTimeout: -1}
	attach := func() {
		t.Helper()
		a := must(e.Attach(t.Context(), engine.AttachRequest{Request: req, Rules: []engine.AttachRule{{Policy: policy}}}))(t)
		for c := range a.Snapshot.All() {
			if c.Outcome == nil || !c.Outcome.Done || c.Outcome.Error != "" {
				t.Errorf("port %d: %+v", c.Sock.LocalPort, c.Outcome)
			}
		}
	}
	attach()
	for i, p := range list {
		if clients[i] == nil {
			continue
		}
		if got := optionsOf(t, owners[p.port]); !strings.HasPrefix(got, "1 2 1 3 ") {
			t.Errorf("%s has %s, had %s", p.name, got, before[p.port])
		}
	}
	must(e.Detach(t.Context()))(t)
	for i, p := range list {
		if clients[i] == nil {
			continue
		}
		if got := optionsOf(t, owners[p.port]); got != before[p.port] {
			t.Errorf("%s has %s, had %s", p.name, got, before[p.port])
		}
		t.Logf("%s: %s", p.name, before[p.port])
	}

	attach()
	ok(t, link.Cut())
	cut := time.Now()
	type span struct{ earliest, latest time.Duration }
	due := map[uint16]span{}
	for c := range must(e.Scan(t.Context(), req))(t).All() {
		f, known := c.Forecast()
		if !known || !f.GivesUp || f.Errno != "ETIMEDOUT" {
			t.Errorf("port %d: forecast %+v, known %v", c.Sock.LocalPort, f, known)
		}
		due[c.Sock.LocalPort] = span{f.Earliest, f.Latest}
	}
	scanned := time.Now()
	const slack = 4 * time.Second // the machine may be busy
	for len(due) > 0 && time.Since(cut) < 40*time.Second {
		left := map[uint16]bool{}
		asked := time.Since(scanned)
		for c := range must(e.Scan(t.Context(), req))(t).All() {
			left[c.Sock.LocalPort] = true
		}
		now := time.Since(cut)
		for port, s := range due {
			switch {
			case left[port]:
			case now < s.earliest-100*time.Millisecond || asked > s.latest+slack:
				t.Errorf("port %d ended after %v to %v, forecast %v to %v", port, asked, now, s.earliest, s.latest)
				fallthrough
			default:
				delete(due, port)
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	if len(due) > 0 {
		t.Errorf("not ended: %v", due)
	}
	for i, p := range list {
		if clients[i] != nil && p.says {
			awaitLine(t, p, "ended ETIMEDOUT")
		}
	}
}

func awaitLine(t *testing.T, p *program, want string) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		for s := bufio.NewScanner(strings.NewReader(p.out.String())); s.Scan(); {
			if s.Text() == want {
				return
			}
		}
	}
	t.Errorf("%s did not say %q: %s", p.name, want, p.out)
}
