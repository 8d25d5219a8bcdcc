package advise

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"deadpeer/internal/conn"
	"deadpeer/internal/engine"
	"deadpeer/internal/testnet"
	"deadpeer/keepalive"
)

// site is a host of its own with servers on it.
type site struct {
	*testing.T
	host *testnet.Host
	dir  string
}

func newSite(t *testing.T) *site {
	t.Helper()
	network, err := testnet.New(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = network.Close() })
	host, err := network.Host("server")
	if err != nil {
		t.Fatal(err)
	}
	return &site{t, host, folder(t)}
}

// run starts a server, which is killed at the end.
func (s *site) run(cmd *exec.Cmd) {
	s.Helper()
	log, err := os.Create(filepath.Join(s.dir, filepath.Base(cmd.Path)+".log"))
	if err != nil {
		s.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := s.host.Start(cmd); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGINT) // so that a server ends its own children
		done := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		done.Stop()
		_ = log.Close()
		if s.Failed() {
			text, _ := os.ReadFile(log.Name())
			s.Logf("%s:\n%s", log.Name(), text)
		}
	})
}

// dial connects once the server listens.
func (s *site) dial(address string) net.Conn {
	s.Helper()
	var c net.Conn
	eventually(s.T, func() bool {
		tcp, err := s.host.Dial(s.Context(), "tcp4", address)
		c = tcp
		return err == nil
	})
	s.Cleanup(func() { _ = c.Close() })
	return c
}

// survey looks at the servers' ends of their connections.
func (s *site) survey(p keepalive.Policy, o Options, filter string) map[string]Program {
	s.Helper()
	f, err := conn.ParseFilter(strings.Fields(filter), conn.Resolver{})
	if err != nil {
		s.Fatal(err)
	}
	r, err := Survey(s.Context(), engine.New(engine.Options{RuntimeDir: s.dir}),
		engine.Request{Netns: fmt.Sprintf("/proc/self/fd/%d", s.host.NS().Fd()), Filter: f}, p, o)
	if err != nil {
		s.Fatal(err)
	}
	list := map[string]Program{}
	for _, p := range r.Programs {
		list[p.Name] = p
	}
	return list
}

// A real Redis and a real nginx: what their files say is found, and whether
// their open connections agree.
func TestSurvey(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	policy := policies(t)["k8s"]
	redis := write(t, s.dir+"/etc/redis/redis.conf", "port 7379\ntcp-keepalive 300\nsave \"\"\ndir "+s.dir+"\n")
	nginx := write(t, s.dir+"/etc/nginx/nginx.conf", "daemon off; user root root; pid pid; error_log stderr;\nevents {}\n"+
		"http { access_log off; client_body_temp_path a; proxy_temp_path b; fastcgi_temp_path c; uwsgi_temp_path d; scgi_temp_path e;\n"+
		"server { listen 8081 so_keepalive=60s:10s:6; }\nserver { listen 8082; } }\n")
	s.run(exec.Command(program(t, "redis-server"), redis))
	s.run(exec.Command(program(t, "nginx"), "-p", s.dir, "-c", nginx))
	first := s.dial("127.0.0.1:7379")
	for _, port := range []string{"8081", "8082"} {
		c := s.dial("127.0.0.1:" + port)
		// With a request the worker has accepted the connection.
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(c).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	ask(t, first, "PING", "+PONG")
	servers := "( sport = :7379 or sport = :8081 or sport = :8082 )"
	list := s.survey(policy, Options{Root: s.dir}, servers)
	r, n := list["redis-server"], list["nginx"]
	if r.Software == nil || r.Software.ID != "redis" || r.Connections != 1 || r.Slow != 1 || r.Blind != 0 || r.Worst != 10*time.Minute || !r.Mend ||
		r.Compared != 1 || r.Differ != 0 || said(r.Config) != "tcp-keepalive=300 /etc/redis/redis.conf:2\n" || r.Advice.Example != "tcp-keepalive 60\n" {
		t.Errorf("redis: %+v\n%+v", r, r.Config)
	}
	// Its command line is that of the master, and names a file outside the
	// root that is asked for: it is looked for below that root.
	if n.Software == nil || n.Software.ID != "nginx" || n.Connections != 2 || n.Blind != 1 || n.Slow != 0 || !n.Mend {
		t.Errorf("nginx: %+v\n%+v", n, n.Config)
	}
	// With its own root the file is the one it was started with.
	n = s.survey(policy, Options{}, servers)["nginx"]
	want := "so_keepalive of port 8081=60s:10s:6 " + nginx + ":4\nso_keepalive of port 8082=not set " + nginx + ":5\n"
	if said(n.Config) != want || n.Compared != 2 || n.Differ != 0 {
		t.Errorf("nginx: %+v\n%+v, want\n%s", n, n.Config, want)
	}

	// Redis is told better, and takes it for new connections only.
	write(t, redis, "port 7379\ntcp-keepalive 60\nsave \"\"\ndir "+s.dir+"\n")
	ask(t, first, "CONFIG SET tcp-keepalive 60", "+OK")
	second := s.dial("127.0.0.1:7379")
	ask(t, second, "PING", "+PONG")
	r = s.survey(policy, Options{Root: s.dir}, servers)["redis-server"]
	if r.Connections != 2 || r.Slow != 1 || r.Compared != 2 || r.Differ != 1 || !r.Enough(policy) || !r.Mend {
		t.Errorf("redis with one old connection: %+v\n%+v", r, r.Config)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool {
		r = s.survey(policy, Options{Root: s.dir}, servers)["redis-server"]
		return r.Connections == 1
	})
	if r.Slow != 0 || r.Differ != 0 || r.Mend {
		t.Errorf("redis without it: %+v\n%+v", r, r.Config)
	}

	// The clients' ends are of this test, a Go program without keepalive.
	for name, p := range s.survey(policy, Options{}, "dport = :7379") {
		if p.Software == nil || p.Software.ID != "go" || p.Blind != p.Connections || p.Config != nil {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

func ask(t *testing.T, c net.Conn, question, want string) {
	t.Helper()
	if _, err := io.WriteString(c, question+"\r\n"); err != nil {
		t.Fatal(err)
	}
	if answer, err := bufio.NewReader(c).ReadString('\n'); err != nil || strings.TrimSpace(answer) != want {
		t.Fatalf("%s: %q, %v", question, answer, err)
	}
}

// A real PostgreSQL: a session takes a changed file up with its next command,
// so one that is idle keeps what it had.
func TestSurveyPostgreSQL(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	policy := policies(t)["k8s"]
	data := s.dir + "/data"
	initdb := exec.Command(program(t, "initdb"), "-D", data, "-A", "trust", "-U", "x", "--no-sync")
	asNobody(t, initdb)
	initdb.Dir = s.dir
	output(t, initdb)
	conf := data + "/postgresql.conf"
	text, err := os.ReadFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	write(t, conf, string(text)+"port = 7432\nunix_socket_directories = ''\nfsync = off\ntcp_keepalives_idle = 10min\n")
	server := exec.Command(program(t, "postgres"), "-D", data)
	asNobody(t, server)
	s.run(server)
	_ = s.dial("127.0.0.1:7432").Close()

	client := exec.Command(program(t, "psql"), "-h", "127.0.0.1", "-p", "7432", "-U", "x", "-AtX", "postgres")
	in, err := client.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := client.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.host.Start(client); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close(); _ = client.Wait() }()
	answers := bufio.NewReader(out)
	sql := func(command, want string) {
		t.Helper()
		if _, err := io.WriteString(in, command+";\n"); err != nil {
			t.Fatal(err)
		}
		if answer, err := answers.ReadString('\n'); err != nil || strings.TrimSpace(answer) != want {
			t.Fatalf("%s: %q, %v", command, answer, err)
		}
	}
	see := func() Program { return s.survey(policy, Options{}, "sport = :7432")["postgres"] }
	sql("select 1", "1")
	p := see()
	if p.Software == nil || p.Software.ID != "postgresql" || p.Connections != 1 || p.Slow != 1 || p.Compared != 1 || p.Differ != 0 ||
		!strings.HasPrefix(said(p.Config), "tcp_keepalives_idle=10min "+conf+":") || p.Enough(policy) {
		t.Fatalf("%+v\n%+v", p, p.Config)
	}

	write(t, data+"/postgresql.auto.conf", p.Advice.Example)
	if err := server.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if p = see(); p.Slow != 1 || p.Differ != 1 || !p.Enough(policy) || !p.Mend {
		t.Errorf("before the session's next command: %+v\n%+v", p, p.Config)
	}
	eventually(t, func() bool {
		sql("select 2", "2")
		p = see()
		return p.Differ == 0
	})
	if p.Slow != 0 || p.Mend || p.Compared != 1 {
		t.Errorf("after it: %+v\n%+v", p, p.Config)
	}
}

// A program that sees other files than this host has its own read.
func TestSurveyContainer(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/etc/redis"); err != nil {
		skip(t, "there is no /etc/redis to hide")
	}
	s := newSite(t)
	script := `mount -t tmpfs tmpfs /etc/redis && mkdir /etc/redis/real &&
		printf 'port 7380\ntcp-keepalive 77\nsave ""\n' >/etc/redis/real/redis.conf &&
		ln -s /etc/redis/real/redis.conf /etc/redis/redis.conf && cd / && exec "$@"`
	cmd := exec.Command("sh", "-c", script, "sh", program(t, "redis-server"), "/etc/redis/redis.conf")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	s.run(cmd)
	ask(t, s.dial("127.0.0.1:7380"), "PING", "+PONG")
	p := s.survey(policies(t)["k8s"], Options{}, "sport = :7380")["redis-server"]
	if p.Config == nil || said(p.Config) != "tcp-keepalive=77 /etc/redis/redis.conf:2\n" || p.Compared != 1 || p.Differ != 0 {
		t.Errorf("%+v\n%+v", p, p.Config)
	}
}
