package advise

import (
	"fmt"
	"go/parser"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"deadpeer/internal/testnet"
	"deadpeer/keepalive"
)

func TestMain(m *testing.M) { os.Exit(testnet.Main(m)) }

// skip leaves a test out, but not where all of them must run.
func skip(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// program finds a server's binary, wherever its package puts it.
func program(t *testing.T, name string) string {
	t.Helper()
	patterns := []string{"/usr/sbin/" + name, "/usr/bin/" + name, "/usr/lib/postgresql/*/bin/" + name}
	for _, p := range patterns {
		if found, err := filepath.Glob(p); err == nil && len(found) > 0 {
			return found[len(found)-1]
		}
	}
	skip(t, name+" is not installed")
	return ""
}

// nobody is who servers run as that refuse to run as root.
const nobody = 65534

// asNobody makes a command run as nobody, which takes a root that is one.
func asNobody(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if os.Getuid() != 0 || os.Getenv("DEADPEER_TESTNET_REEXEC") != "" {
		skip(t, "needs root: "+filepath.Base(cmd.Path)+" does not run as root")
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
}

// folder is a new folder, short of name since sockets' names are, that nobody
// owns where that can be.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "advise")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if os.Getuid() == 0 {
		_ = os.Chown(dir, nobody, nobody) // inside a user namespace there is only root
	}
	return dir
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

// output runs a command that must succeed.
func output(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %v\n%s%s", cmd.Args, err, &stdout, &stderr)
	}
	return stdout.String()
}

func rendered(t *testing.T, id string, p keepalive.Policy) Advice {
	t.Helper()
	s, err := ByName(id)
	if err != nil {
		t.Fatal(err)
	}
	a, err := s.Render(p)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// extremes are a common policy, and the quickest and slowest there can be, with
// user timeouts.
func extremes(t *testing.T) []keepalive.Policy {
	t.Helper()
	all := policies(t)
	return []keepalive.Policy{all["k8s"], all[keepalive.LeastWithin.String()], all[keepalive.MostWithin.String()]}
}

// The software itself accepts what is advised, and understands it so.
func TestSoftwareAccepts(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		id    string
		check func(t *testing.T, dir string, a Advice, p keepalive.Policy) (said string, want []string)
	}{
		{"nginx", func(t *testing.T, dir string, a Advice, _ keepalive.Policy) (string, []string) {
			conf := write(t, dir+"/nginx.conf", "user root root;\npid "+dir+"/pid;\nerror_log stderr;\nevents {}\nhttp { access_log off;\n"+
				"client_body_temp_path a; proxy_temp_path b; fastcgi_temp_path c; uwsgi_temp_path d; scgi_temp_path e;\nserver {\n"+a.Example+"}\n}\n")
			output(t, exec.Command(program(t, "nginx"), "-t", "-p", dir, "-c", conf))
			return "", nil
		}},
		{"haproxy", func(t *testing.T, dir string, a Advice, _ keepalive.Policy) (string, []string) {
			conf := write(t, dir+"/haproxy.cfg", a.Example+"    mode tcp\n    timeout connect 5s\n    timeout client 1h\n    timeout server 1h\n"+
				"listen x\n    bind 127.0.0.1:1\n    server s 127.0.0.1:2\n")
			output(t, exec.Command(program(t, "haproxy"), "-c", "-dW", "-f", conf))
			return "", nil
		}},
		{"sshd", func(t *testing.T, dir string, a Advice, p keepalive.Policy) (string, []string) {
			output(t, exec.Command(program(t, "ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", dir+"/key"))
			conf := write(t, dir+"/sshd_config", "HostKey "+dir+"/key\n"+a.Example)
			// sshd wants a folder that its service makes.
			cmd := exec.Command("sh", "-c", `mount -t tmpfs tmpfs /run && mkdir /run/sshd && exec "$@"`, "sh", program(t, "sshd"), "-T", "-f", conf)
			cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
			return output(t, cmd), []string{"clientaliveinterval " + fmt.Sprint(figures(p)[".ThirdDetection"]) + "\n", "clientalivecountmax 3\n"}
		}},
		{"openssh-client", func(t *testing.T, dir string, a Advice, p keepalive.Policy) (string, []string) {
			out := output(t, exec.Command(program(t, "ssh"), "-G", "-F", write(t, dir+"/config", a.Example), "host"))
			return out, []string{"serveraliveinterval " + fmt.Sprint(figures(p)[".ThirdDetection"]) + "\n", "serveralivecountmax 3\n"}
		}},
		{"postgresql", func(t *testing.T, dir string, a Advice, p keepalive.Policy) (string, []string) {
			conf := write(t, dir+"/postgresql.conf", a.Example)
			var said strings.Builder
			for _, key := range postgresKeys {
				said.WriteString(key + "=" + output(t, exec.Command(program(t, "postgres"), "-C", key, "-D", dir, "-c", "config_file="+conf)))
			}
			return said.String(), []string{
				"idle=" + seconds(p.Idle), "interval=" + seconds(p.Interval), "count=" + strconv.Itoa(p.Probes) + "\n",
				"tcp_user_timeout=" + fmt.Sprint(figures(p)[".UserTimeoutMS"]) + "\n", "check_interval=10000\n",
			}
		}},
		{"mariadb", func(t *testing.T, dir string, a Advice, p keepalive.Policy) (string, []string) {
			conf := write(t, dir+"/my.cnf", a.Example)
			out := output(t, exec.Command(program(t, "mariadbd"), "--defaults-file="+conf, "--help", "--verbose"))
			var said strings.Builder
			for line := range strings.Lines(out) {
				if f := strings.Fields(line); len(f) == 2 && strings.HasPrefix(f[0], "tcp-keepalive") {
					said.WriteString(strings.Join(f, "=") + "\n")
				}
			}
			return said.String(), []string{"time=" + seconds(p.Idle), "interval=" + seconds(p.Interval), "probes=" + strconv.Itoa(p.Probes) + "\n"}
		}},
		{"python", func(t *testing.T, _ string, a Advice, p keepalive.Policy) (string, []string) {
			return output(t, exec.Command(program(t, "python3"), "-c", "import socket\nsock = socket.socket()\n"+a.Example+
					"print(*[sock.getsockopt(6, o) for o in (4, 5, 6)])\n")), []string{seconds(p.Idle)[:len(seconds(p.Idle))-1] + " " +
					strings.TrimSpace(seconds(p.Interval)) + " " + strconv.Itoa(p.Probes) + "\n"}
		}},
		{"go", func(t *testing.T, _ string, a Advice, _ keepalive.Policy) (string, []string) {
			if _, err := parser.ParseExpr("func() {\n" + a.Example + "}"); err != nil {
				t.Error(err)
			}
			return a.Example, []string{"KeepAliveConfig"}
		}},
	} {
		t.Run(test.id, func(t *testing.T) {
			t.Parallel()
			for _, p := range extremes(t) {
				said, want := test.check(t, folder(t), rendered(t, test.id, p), p)
				for _, w := range want {
					if !strings.Contains(said, w) {
						t.Errorf("%+v: it does not say %q:\n%s", p, w, said)
					}
				}
			}
		})
	}
}

func seconds(d time.Duration) string { return strconv.FormatInt(int64(d/time.Second), 10) + "\n" }

// PgBouncer has no way to check a file but to run with it.
func TestPgBouncerAccepts(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	p := extremes(t)[1]
	conf := write(t, dir+"/pgbouncer.ini", rendered(t, "pgbouncer", p).Example+
		"unix_socket_dir = "+dir+"\nlisten_port = 6432\nauth_type = any\nadmin_users = x\nlogfile = "+dir+"/log\n[databases]\n")
	cmd := exec.CommandContext(t.Context(), program(t, "pgbouncer"), "-q", conf)
	asNobody(t, cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	eventually(t, func() bool { _, err := os.Stat(dir + "/.s.PGSQL.6432"); return err == nil })
	out := output(t, exec.Command(program(t, "psql"), "-h", dir, "-p", "6432", "-U", "x", "-AtX", "-F", "=", "-c", "show config", "pgbouncer"))
	for _, want := range []string{
		"tcp_keepalive=1=", "tcp_keepidle=" + strings.TrimSpace(seconds(p.Idle)) + "=", "tcp_keepintvl=" + strings.TrimSpace(seconds(p.Interval)) + "=",
		"tcp_keepcnt=" + strconv.Itoa(p.Probes) + "=", "tcp_user_timeout=" + strconv.FormatInt(p.UserTimeout.Milliseconds(), 10) + "=",
	} {
		if !strings.Contains(out, "\n"+want) {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
}

// The kernel takes the sysctl lines.
func TestKernelAccepts(t *testing.T) {
	t.Parallel()
	network, err := testnet.New(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = network.Close() }()
	host, err := network.Host("db")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range extremes(t) {
		for line := range strings.Lines(rendered(t, "firebird", p).Example) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), " = ")
			if err := host.SetSysctl(name, value); err != nil {
				t.Errorf("%s: %v", line, err)
			}
		}
	}
}

func eventually(t *testing.T, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not happen within 30 s")
		}
	}
}
