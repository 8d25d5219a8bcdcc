// Package programs attaches to servers that know nothing of deadpeer: those of
// Debian, a script, a Java program and a static binary. None is restarted.
package programs

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"deadpeer/internal/bpf"
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
	// What its new connections have that sets something itself, where it may and
	// where it may not weaken the policy, patterns of path.Match.
	sets, enforced string
	out            *output
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
		}, sets: "1 300 100 3 *", enforced: "1 2 1 3 *", talk: exchange("PING\r\n", "+PONG")},
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
		{name: "postgres", find: "/usr/lib/postgresql/*/bin/postgres", port: 5432, start: postgres, sets: "1 600 1 4 *", talk: func(c net.Conn) error {
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

// begin starts a program on the server, in a cgroup unless that is nil, and
// waits until it answers; false where there is no such program.
func (p *program) begin(t *testing.T, server, client *testnet.Host, addr netip.Addr, cgroup *os.File) bool {
	t.Helper()
	found, _ := filepath.Glob(p.find)
	if len(found) == 0 {
		if os.Getenv("CI") != "" {
			t.Errorf("%s is not there", p.find)
		}
		t.Logf("left out: %s is not there", p.find)
		return false
	}
	p.find, p.out = found[0], &output{}
	// Others must be able to enter the folder.
	dir := must(os.MkdirTemp("", "programs"))(t)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	ok(t, os.Chmod(dir, 0o755))
	cmd := p.start(t, p, dir)
	cmd.Stdout, cmd.Stderr = p.out, p.out
	cmd.WaitDelay = time.Second
	if cgroup != nil {
		if cmd.SysProcAttr == nil {
			cmd.SysProcAttr = &syscall.SysProcAttr{}
		}
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(cgroup.Fd())
	}
	ok(t, server.Start(cmd))
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGINT)
		kill := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		kill.Stop()
	})
	for end := time.Now().Add(90 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		c, err := p.connect(t, client, addr)
		if err == nil {
			return c.Close() == nil
		}
		if time.Now().After(end) {
			t.Errorf("%s: %v\n%s", p.name, err, p.out)
			return false
		}
	}
}

// connect gives the client's end of a connection that has done its talk.
func (p *program) connect(t *testing.T, client *testnet.Host, addr netip.Addr) (net.Conn, error) {
	c, err := client.Dial(t.Context(), "tcp4", netip.AddrPortFrom(addr, p.port).String())
	if err != nil {
		return nil, err
	}
	err = c.SetDeadline(time.Now().Add(30 * time.Second))
	if err == nil {
		err = p.talk(c)
	}
	if err = errors.Join(err, c.SetDeadline(time.Time{})); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, nil
}

// stage is servers and a client that connects to them.
type stage struct {
	t        *testing.T
	programs []*program
	server   *testnet.Host
	client   *testnet.Host
	link     *testnet.Link
	engine   *engine.Engine
	request  engine.Request
	cgroup   string // of the servers, "" when there is none for want of BPF
}

func newStage(t *testing.T) *stage {
	t.Helper()
	world := must(testnet.New(t.Context()))(t)
	t.Cleanup(func() { ok(t, world.Close()) })
	s := &stage{t: t, server: must(world.Host("server"))(t), client: must(world.Host("client"))(t)}
	s.link = must(world.Connect(s.server, s.client))(t)
	options := engine.Options{RuntimeDir: filepath.Join(t.TempDir(), "run")}
	cgroup, err := ownCgroup(t)
	var folder *os.File
	if err == nil {
		s.cgroup, options.HookDir = cgroup, bpffs(t)+"/hooks"
		folder = must(os.Open(must(bpf.CgroupRoot())(t) + cgroup))(t)
		defer func() { _ = folder.Close() }()
	} else {
		t.Logf("left out: --new: %v", err)
	}
	s.engine = engine.New(options)
	list := programs()
	var wg sync.WaitGroup
	there := make([]bool, len(list))
	for i, p := range list {
		wg.Go(func() { there[i] = p.begin(t, s.server, s.client, s.link.IPv4(s.server), folder) })
	}
	wg.Wait()
	filter := "sport = :1"
	for i, p := range list {
		if there[i] {
			s.programs = append(s.programs, p)
			filter += " or sport = :" + p.number()
		}
	}
	if t.Failed() {
		t.FailNow()
	}
	s.request = engine.Request{Netns: nsPath(s.server), Settings: true, Filter: must(conn.ParseFilter([]string{filter}, conn.Resolver{}))(t)}
	return s
}

// open makes a connection to every program and gives its server's ports, with
// the client's.
func (s *stage) open() map[*program]uint16 {
	s.t.Helper()
	ports := map[*program]uint16{}
	for _, p := range s.programs {
		c := must(p.connect(s.t, s.client, s.link.IPv4(s.server)))(s.t)
		ports[p] = c.LocalAddr().(*net.TCPAddr).AddrPort().Port()
	}
	return ports
}

// scan gives the connections by both ports.
func (s *stage) scan() map[[2]uint16]engine.Connection {
	s.t.Helper()
	m := map[[2]uint16]engine.Connection{}
	for c := range must(s.engine.Scan(s.t.Context(), s.request))(s.t).All() {
		kept := *c
		kept.Owners = slices.Clone(c.Owners)
		m[[2]uint16{c.Sock.LocalPort, c.Sock.PeerPort}] = kept
	}
	return m
}

// options reads the options of connections by another program, from the
// descriptors of those that hold them.
func (s *stage) options(ports map[*program]uint16) map[*program]string {
	s.t.Helper()
	all := s.scan()
	args := []string{"testdata/read.py"}
	var order []*program
	for p, port := range ports {
		owners := all[[2]uint16{p.port, port}].Owners
		if len(owners) == 0 {
			s.t.Fatalf("%s: nobody holds the connection from port %d", p.name, port)
		}
		order, args = append(order, p), append(args, fmt.Sprint(owners[0].PID), fmt.Sprint(owners[0].FD))
	}
	out := must(exec.Command("/usr/bin/python3", args...).Output())(s.t)
	options := map[*program]string{}
	for n, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		_, options[order[n]], _ = strings.Cut(line, args[2*n+1]+" "+args[2*n+2]+" ")
	}
	return options
}

// have holds every program's connection to what is wanted of it, a pattern.
func (s *stage) have(what string, ports map[*program]uint16, want func(p *program) string) {
	s.t.Helper()
	for p, got := range s.options(ports) {
		if match, err := path.Match(want(p), got); err != nil || !match {
			s.t.Errorf("%s, %s: %s, want %s", p.name, what, got, want(p))
		}
	}
}

// The policy, as another program reads it.
var policy = keepalive.Policy{Idle: 2 * time.Second, Interval: time.Second, Probes: 4, UserTimeout: -1}

const asRead = "1 2 1 4 *"

func (s *stage) attach(rule engine.AttachRule) {
	s.t.Helper()
	rule.Policy = policy
	if rule.New {
		rule.Future, rule.Cgroup = s.request.Filter, s.cgroup
	}
	a := must(s.engine.Attach(s.t.Context(), engine.AttachRequest{Request: s.request, Rules: []engine.AttachRule{rule}}))(s.t)
	for c := range a.Snapshot.All() {
		if c.Outcome == nil || !c.Outcome.Done || c.Outcome.Error != "" {
			s.t.Errorf("port %d: %+v", c.Sock.LocalPort, c.Outcome)
		}
	}
}

// Each program's connection gets the policy, and its own options back; new ones
// have it before their program has them; and, attached and cut off, all of them
// end when the forecast says.
func TestPrograms(t *testing.T) {
	if os.Geteuid() != 0 && os.Getenv("CI") == "" {
		t.Skip("PostgreSQL needs to be started by root, or as another user")
	}
	t.Parallel()
	s := newStage(t)
	old := s.open()
	before := s.options(old)
	attached := func(*program) string { return asRead }
	detached := func(p *program) string { return before[p] }
	s.attach(engine.AttachRule{})
	s.have("attached", old, attached)
	must(s.engine.Detach(t.Context()))(t)
	s.have("detached", old, detached)

	var fresh, enforced map[*program]uint16
	if s.cgroup != "" {
		s.attach(engine.AttachRule{New: true})
		fresh = s.open()
		s.have("attached, live", old, attached)
		s.have("attached, new", fresh, func(p *program) string { return cmp.Or(p.sets, asRead) })
		must(s.engine.Detach(t.Context()))(t)
		s.have("detached, live", old, detached)
		s.have("detached, new", fresh, detached)
		s.attach(engine.AttachRule{New: true, Enforce: true})
		enforced = s.open()
		s.have("enforced, live", fresh, attached)
		s.have("enforced, new", enforced, func(p *program) string { return cmp.Or(p.enforced, asRead) })
		a := must(s.engine.Attachments(t.Context()))(t)
		if len(a) != 1 || a[0].Given < uint64(len(s.programs)) || a[0].Limited == 0 {
			t.Errorf("%+v", a)
		}
	} else {
		s.attach(engine.AttachRule{})
	}

	type span struct{ earliest, latest time.Duration }
	due := map[[2]uint16]span{}
	ok(t, s.link.Cut())
	cut := time.Now()
	for id, c := range s.scan() {
		if c.Sock.State != conn.Established {
			continue
		}
		f, known := c.Forecast()
		if !known || !f.GivesUp || f.Errno != "ETIMEDOUT" {
			t.Errorf("port %d: forecast %+v, known %v", c.Sock.LocalPort, f, known)
		}
		due[id] = span{f.Earliest, f.Latest}
	}
	if want := len(old) + len(fresh) + len(enforced); len(due) < want {
		t.Errorf("%d connections have a forecast, want %d", len(due), want)
	}
	scanned := time.Now()
	const slack = 5 * time.Second // the machine may be busy
	for len(due) > 0 && time.Since(cut) < 40*time.Second {
		asked := time.Since(scanned)
		left := s.scan()
		now := time.Since(cut)
		for id, d := range due {
			if _, open := left[id]; open {
				continue
			}
			if now < d.earliest-100*time.Millisecond || asked > d.latest+slack {
				t.Errorf("port %d ended after %v to %v, forecast %v to %v", id[0], asked, now, d.earliest, d.latest)
			}
			delete(due, id)
		}
		time.Sleep(100 * time.Millisecond)
	}
	if len(due) > 0 {
		t.Errorf("not ended: %v", due)
	}
	for _, p := range s.programs {
		if p.says {
			await(t, p.out, "ended ETIMEDOUT")
		}
		if p.name == "python" && s.cgroup != "" {
			await(t, p.out, "accepted "+strings.TrimSuffix(asRead, " *"))
		}
		t.Logf("%s: %s", p.name, before[p])
	}
}
