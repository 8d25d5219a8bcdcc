package advise

import (
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"deadpeer/keepalive"
)

func files(list map[string]string) fs.FS {
	m := fstest.MapFS{}
	for name, text := range list {
		m[strings.TrimPrefix(name, "/")] = &fstest.MapFile{Data: []byte(text)}
	}
	return m
}

// said is what a configuration says, one line each.
func said(c *Config) string {
	var b strings.Builder
	for _, s := range c.Settings {
		b.WriteString(s.Key + "=" + s.Value + " " + s.File)
		if s.Line > 0 {
			b.WriteString(":" + strconv.Itoa(s.Line))
		}
		b.WriteByte('\n')
	}
	for _, h := range c.Harmful {
		b.WriteString("harmful: " + h + "\n")
	}
	for _, p := range c.Problems {
		b.WriteString("problem: " + p + "\n")
	}
	return b.String()
}

func TestReadConfig(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, id string
		args     string // separated by blanks
		cwd, exe string
		files    map[string]string
		want     string
		within   time.Duration
	}{
		{
			name: "postgres: includes, quotes, the last wins, then auto.conf, then the command line", id: "postgresql",
			args: "postgres -D /data -c config_file=/etc/pg/postgresql.conf -ctcp_user_timeout=30s",
			files: map[string]string{
				"/etc/pg/postgresql.conf":     "#tcp_keepalives_idle = 1\nTCP_keepalives_idle = 600 # was 7200\ntcp_keepalives_interval '10s'\ninclude_dir = 'conf.d'\ninclude_if_exists 'gone.conf'\n",
				"/etc/pg/conf.d/b.conf":       "tcp_keepalives_count=5\n",
				"/etc/pg/conf.d/.hidden.conf": "tcp_keepalives_count=99\n",
				"/etc/pg/conf.d/c.bak":        "tcp_keepalives_count=98\n",
				"/data/postgresql.auto.conf":  "tcp_keepalives_idle = '1min'\n",
			},
			want: "tcp_keepalives_idle=1min /data/postgresql.auto.conf:1\ntcp_keepalives_interval=10s /etc/pg/postgresql.conf:3\n" +
				"tcp_keepalives_count=5 /etc/pg/conf.d/b.conf:1\ntcp_user_timeout=30s command line\n",
			within: 70 * time.Second, // the first probe at or after the user timeout
		},
		{
			name: "postgres: its data folder is its working folder; Debian keeps the file in /etc", id: "postgresql",
			args: "postgres: checkpointer", cwd: "/var/lib/postgresql/15/main",
			files: map[string]string{"/etc/postgresql/15/main/postgresql.conf": "tcp_keepalives_idle = 60\n"},
			want:  "tcp_keepalives_idle=60 /etc/postgresql/15/main/postgresql.conf:1\n",
		},
		{
			name: "postgres: no file", id: "postgresql", args: "postgres", cwd: "/nowhere/x",
			want: "problem: no postgresql.conf in /nowhere/x\n",
		},
		{
			name: "postgres: what is included and missing, what is no number", id: "postgresql", args: "postgres -D /d",
			files: map[string]string{"/d/postgresql.conf": "include 'gone.conf'\ntcp_keepalives_count = many\ntcp_keepalives_idle = 1fortnight\n"},
			want: "tcp_keepalives_count=many /d/postgresql.conf:2\ntcp_keepalives_idle=1fortnight /d/postgresql.conf:3\n" +
				"problem: read /d/gone.conf: file does not exist\nproblem: tcp_keepalives_idle: \"1fortnight\" is no time\n" +
				"problem: tcp_keepalives_count: \"many\" is no count\n",
		},
		{
			name: "postgres: a file that includes itself", id: "postgresql", args: "postgres -D /d",
			files: map[string]string{"/d/postgresql.conf": "include 'postgresql.conf'\n"},
			want:  "problem: includes are nested more than 10 deep: the rest was not read\n",
		},
		{
			name: "mariadb: groups, dashes, includedir, command line", id: "mariadb", args: "mariadbd --tcp-keepalive-probes=4",
			files: map[string]string{
				"/etc/mysql/my.cnf":        "[client]\ntcp_keepalive_time=1\n[mysqld]\ntcp-keepalive-time = 60 ; s\n!includedir /etc/mysql/conf.d/\n",
				"/etc/mysql/conf.d/a.cnf":  "[mariadb-10.11]\nloose-tcp_keepalive_interval='10'\n[mysqldump]\ntcp_keepalive_time=2\n",
				"/etc/mysql/conf.d/b.conf": "[mysqld]\ntcp_keepalive_time=3\n",
			},
			want: "tcp_keepalive_time=60 /etc/mysql/my.cnf:4\ntcp_keepalive_interval=10 /etc/mysql/conf.d/a.cnf:2\n" +
				"tcp_keepalive_probes=4 command line\n",
			within: 100 * time.Second,
		},
		{
			name: "mariadb: another file", id: "mariadb", args: "mariadbd --defaults-file=my.cnf", cwd: "/srv",
			files: map[string]string{"/srv/my.cnf": "[server]\ntcp_keepalive_time=60\n", "/etc/my.cnf": "[server]\ntcp_keepalive_time=61\n"},
			want:  "tcp_keepalive_time=60 /srv/my.cnf:2\n",
		},
		{
			name: "pgbouncer", id: "pgbouncer", args: "/usr/sbin/pgbouncer -d -u nobody /srv/pb.ini",
			files: map[string]string{
				"/srv/pb.ini":   "[databases]\ntcp_keepidle = 1\n[pgbouncer]\n;tcp_keepidle = 2\ntcp_keepidle = 60\n%include more.ini\n",
				"/srv/more.ini": "[pgbouncer]\ntcp_keepintvl = 10\ntcp_keepcnt = 6\n",
			},
			want:   "tcp_keepidle=60 /srv/pb.ini:5\ntcp_keepintvl=10 /srv/more.ini:2\ntcp_keepcnt=6 /srv/more.ini:3\n",
			within: 2 * time.Minute,
		},
		{
			name: "redis: the file whose port is the title's", id: "redis", args: "redis-server 127.0.0.1:6380",
			files: map[string]string{
				"/etc/redis/redis.conf":   "port 6379\ntcp-keepalive 1\n",
				"/etc/redis/two.conf":     "port 6380\ntcp-keepalive 60\ninclude /etc/redis/more.d/*.inc\n",
				"/etc/redis/more.d/x.inc": "# tcp-keepalive 2\ntcp-keepalive \"90\"\n",
			},
			want: "tcp-keepalive=90 /etc/redis/more.d/x.inc:2\n", within: 3 * time.Minute,
		},
		{
			name: "redis: its default", id: "redis", args: "redis-server *:6379",
			files: map[string]string{"/etc/redis/redis.conf": "bind 127.0.0.1\n"}, within: 10 * time.Minute,
		},
		{
			name: "redis: off", id: "redis", args: "redis-server *:6379",
			files: map[string]string{"/etc/redis/redis.conf": "tcp-keepalive 0\n"}, want: "tcp-keepalive=0 /etc/redis/redis.conf:1\n",
		},
		{
			name: "redis: no file with that port", id: "redis", args: "redis-server *:7000",
			files: map[string]string{"/etc/redis/redis.conf": "port 6379\n"},
			want:  "problem: no redis.conf with port 7000 found; redis-cli -p 7000 info server names it (config_file)\n",
		},
		{
			name: "nginx: blocks, includes below the file's folder, one line of a port speaks for all", id: "nginx",
			args: "nginx: master process /usr/sbin/nginx -c /etc/nginx/nginx.conf",
			files: map[string]string{
				"/etc/nginx/nginx.conf": "http { # {\n include sites/*;\n log_format x '{ $a; } \"';\n}\n",
				"/etc/nginx/sites/a":    "server { listen 80; listen [::]:443 ssl so_keepalive=1m::4;\n set $x \"${y};\"; }\nserver { listen 127.0.0.1:443; listen unix:/x so_keepalive=on; }\n",
			},
			want: "so_keepalive of port 80=not set /etc/nginx/sites/a:1\nso_keepalive of port 443=1m::4 /etc/nginx/sites/a:1\n",
		},
		{
			name: "nginx: all of it", id: "nginx", args: "nginx: master process nginx",
			files: map[string]string{"/etc/nginx/nginx.conf": "stream{server{listen\n*:5000\nso_keepalive=60s:10s:6;proxy_socket_keepalive on;}}"},
			want:  "proxy_socket_keepalive=on /etc/nginx/nginx.conf:3\nso_keepalive of port 5000=60s:10s:6 /etc/nginx/nginx.conf:1\n", within: 2 * time.Minute,
		},
		{
			name: "haproxy: defaults, a named one, no option", id: "haproxy", args: "haproxy -Ws -f /etc/haproxy/haproxy.cfg -p /run/x.pid",
			files: map[string]string{"/etc/haproxy/haproxy.cfg": "global\n  daemon\ndefaults\n  option clitcpka\n  clitcpka-idle 1m\n  clitcpka-intvl 10\n  clitcpka-cnt 6\n" +
				"frontend a\n  bind :80,:81\ndefaults other\nfrontend b from other\n  bind *:90\n  no option clitcpka\n"},
			want: "defaults: option clitcpka=on /etc/haproxy/haproxy.cfg:4\ndefaults: clitcpka-idle=1m /etc/haproxy/haproxy.cfg:5\n" +
				"defaults: clitcpka-intvl=10 /etc/haproxy/haproxy.cfg:6\ndefaults: clitcpka-cnt=6 /etc/haproxy/haproxy.cfg:7\n" +
				"frontend b: option clitcpka=off /etc/haproxy/haproxy.cfg:13\n",
		},
		{
			name: "sshd: the first value wins, Match is for some", id: "sshd", args: "sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups",
			files: map[string]string{
				"/etc/ssh/sshd_config":          "Include sshd_config.d/*.conf\nClientAliveInterval 300\nclientalivecountmax=2\nMatch User x\n  TCPKeepAlive no\n",
				"/etc/ssh/sshd_config.d/a.conf": "ClientAliveInterval 1m\n",
			},
			want: "ClientAliveInterval=1m /etc/ssh/sshd_config.d/a.conf:1\nClientAliveCountMax=2 /etc/ssh/sshd_config:3\n" +
				"problem: /etc/ssh/sshd_config:5: TCPKeepAlive in a Match block holds for some clients only\n",
			within: 2 * time.Minute,
		},
		{
			name: "sshd: asks for ever", id: "sshd", args: "sshd",
			files: map[string]string{"/etc/ssh/sshd_config": "ClientAliveInterval 15\nClientAliveCountMax 0\n"},
			want:  "ClientAliveInterval=15 /etc/ssh/sshd_config:1\nClientAliveCountMax=0 /etc/ssh/sshd_config:2\n",
		},
		{
			name: "firebird: commented out", id: "firebird", args: "firebird",
			files: map[string]string{"/etc/firebird/3.0/firebird.conf": "#DummyPacketInterval = 0\n"},
		},
		{
			name: "firebird: dummy packets, beside its program; xinetd", id: "firebird", args: "fb_inet_server", exe: "/opt/fb/bin/fb_inet_server",
			files: map[string]string{
				"/opt/fb/firebird.conf":  "dummypacketinterval=60 # s\n",
				"/etc/xinetd.d/firebird": "service gds_db\n{\n\tflags\t= REUSE\n}\n",
			},
			want: "DummyPacketInterval=60 /opt/fb/firebird.conf:1\nflags=REUSE /etc/xinetd.d/firebird:3\n" +
				"harmful: DummyPacketInterval = 60 defeats keepalive: comment it out\n" +
				"problem: /etc/xinetd.d/firebird has no KEEPALIVE among its flags: Classic before 1.5 needs flags = REUSE KEEPALIVE\n",
		},
		{
			name: "firebird: a service that is disabled does not matter", id: "firebird", args: "firebird",
			files: map[string]string{
				"/etc/firebird/3.0/firebird.conf": "# DummyPacketInterval = 5\n",
				"/etc/xinetd.d/firebird30":        "service gds_db\n{\n\tdisable = yes\n\tflags = REUSE\n}\n",
			},
		},
		{
			name: "interbase", id: "interbase", args: "ibserver", exe: "/usr/interbase/bin/ibserver",
			files: map[string]string{
				"/usr/interbase/ibconfig": "#DUMMY_PACKET_INTERVAL 1\nDUMMY_PACKET_INTERVAL 60\n",
				"/etc/xinetd.d/gds_db":    "service gds_db\n{\n\tflags += REUSE KEEPALIVE\n}\n",
			},
			want: "DUMMY_PACKET_INTERVAL=60 /usr/interbase/ibconfig:2\nflags=REUSE KEEPALIVE /etc/xinetd.d/gds_db:3\n" +
				"harmful: DUMMY_PACKET_INTERVAL = 60 defeats keepalive: comment it out\n",
		},
		{
			name: "nothing there is said", id: "firebird", args: "firebird",
			want: "problem: no configuration file found in the usual places\n",
		},
		{
			name: "escapes are not shown", id: "postgresql", args: "postgres -D /d",
			files: map[string]string{"/d/postgresql.conf": "tcp_keepalives_idle = '\x1b[2J'\n"},
			want:  "tcp_keepalives_idle=\\x1b[2J /d/postgresql.conf:1\nproblem: tcp_keepalives_idle: \"\\\\x1b[2J\" is no time\n",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			cwd := test.cwd
			if cwd == "" {
				cwd = "/"
			}
			c := readConfig(test.id, place{tree: files(test.files), args: strings.Fields(test.args), cwd: cwd, exe: test.exe})
			if got := said(c); got != test.want {
				t.Errorf("got\n%s\nwant\n%s", got, test.want)
			}
			if c.Within != test.within {
				t.Errorf("within %v, want %v", c.Within, test.within)
			}
		})
	}
	if c := readConfig("java", place{tree: files(nil)}); c != nil {
		t.Errorf("java has a configuration: %+v", c)
	}
}

func TestAgrees(t *testing.T) {
	t.Parallel()
	sixty := keepalive.Settings{KeepAlive: true, Policy: keepalive.Policy{Idle: time.Minute, Interval: 10 * time.Second, Probes: 6}}
	host := keepalive.Settings{KeepAlive: true, Policy: keepalive.Policy{Idle: 2 * time.Hour, Interval: 75 * time.Second, Probes: 9}}
	off := keepalive.Settings{}
	c := readConfig("nginx", place{cwd: "/", args: []string{"nginx"}, tree: files(map[string]string{
		"/etc/nginx/nginx.conf": "http { server { listen 80 so_keepalive=60s:10s:6; listen 81; listen 82 so_keepalive=on; listen 83 so_keepalive=60s; } }",
	})})
	for _, test := range []struct {
		port          uint16
		settings      keepalive.Settings
		agrees, known bool
	}{
		{80, sixty, true, true}, {80, host, false, true}, {80, off, false, true},
		{81, off, true, true}, {81, sixty, false, true},
		{82, host, true, true}, {82, sixty, true, true}, {82, off, false, true}, // on, with whatever the host has
		{83, host, false, false},  // nginx would not start with that
		{9999, off, false, false}, // a connection of its own making
	} {
		if agrees, known := c.agrees(test.port, test.settings); agrees != test.agrees || known != test.known {
			t.Errorf("port %d, %+v: %v, %v", test.port, test.settings, agrees, known)
		}
	}
}

func TestSpan(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{
		"60": time.Minute, "60s": time.Minute, "1min": time.Minute, "1m": time.Minute, "1h30m": 90 * time.Minute, "1h 30m": 90 * time.Minute,
		"1500ms": 1500 * time.Millisecond, "0.5min": 30 * time.Second, "2d": 48 * time.Hour, "0": 0, "1W": 168 * time.Hour,
	} {
		if got, ok := span(text, time.Second); !ok || got != want {
			t.Errorf("%s: %v, %v", text, got, ok)
		}
	}
	for _, text := range []string{"", "s", "1x", "-1", "1e9", "99999999999999999999", "1..2", "0x10", "1000d"} {
		if got, ok := span(text, time.Second); ok {
			t.Errorf("%q is %v", text, got)
		}
	}
}

// FuzzReadConfig gives the same hostile text to every reader, in every place
// it looks at, with every kind of command line.
func FuzzReadConfig(f *testing.F) {
	for _, seed := range []string{
		"", "tcp_keepalives_idle = '1", "include x\ninclude_dir '/'", "[mysqld]\n!includedir /\ntcp_keepalive_time=", "[", "\\", "'", "\"",
		"http{server{listen [::]:80 so_keepalive=::;}}", "}}}{{{;;;${", "defaults\noption clitcpka\nclitcpka-idle 1\nlisten a\nbind :1,:2", "clitcpka-idle 1",
		"ClientAliveInterval =\nMatch", "DummyPacketInterval = =", "flags += KEEPALIVE", "port\ntcp-keepalive", "=", "#", "%include", "frontend x from y",
		strings.Repeat("{", 1000) + strings.Repeat("include *;", 100),
	} {
		f.Add(seed, "-c config_file=/f -D /d -f /f", uint16(80))
	}
	list := entries(f)
	f.Fuzz(func(t *testing.T, text, args string, port uint16) {
		tree := files(map[string]string{
			"/f": text, "/d/postgresql.conf": text, "/etc/my.cnf": text, "/etc/pgbouncer/pgbouncer.ini": text, "/etc/redis/redis.conf": text,
			"/etc/nginx/nginx.conf": text, "/etc/haproxy/haproxy.cfg": text, "/etc/ssh/sshd_config": text, "/etc/firebird/3.0/firebird.conf": text,
			"/opt/interbase/ibconfig": text, "/etc/xinetd.d/firebird": text,
		})
		for _, s := range list {
			c := readConfig(s.ID, place{tree: tree, args: strings.Split(args, " "), cwd: "/d"})
			if c == nil {
				continue
			}
			c.agrees(port, keepalive.Settings{})
			for line := range strings.SplitSeq(strings.TrimSuffix(said(c), "\n"), "\n") {
				for _, r := range line {
					if r < ' ' || r == 0x7f {
						t.Fatalf("%s: %q would be shown", s.ID, line)
					}
				}
			}
			if c.Within < 0 {
				t.Fatalf("%s: gives up after %v", s.ID, c.Within)
			}
		}
	})
}

// Whoever writes the configuration does not decide how long reading it takes.
func TestEndlessConfigurationIsCut(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ id, file, text, want string }{
		"problems": {"haproxy", "/etc/haproxy/haproxy.cfg", strings.Repeat("clitcpka-cnt 1\n", 200_000), "and more"},
		"settings": {"haproxy", "/etc/haproxy/haproxy.cfg", numbered("frontend %d\nclitcpka-cnt 1\n", 60_000), "more than 1000 settings: the rest is not considered"},
		"sockets":  {"haproxy", "/etc/haproxy/haproxy.cfg", numbered("frontend f\nbind :%d\n", 60_000), "more than 1000 kinds of sockets: the rest is not considered"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := readConfig(test.id, place{tree: files(map[string]string{test.file: test.text})})
			if n := len(c.Problems); n == 0 || n > maxWrong+1 || c.Problems[n-1] != test.want {
				t.Errorf("%d problems: %q", n, c.Problems)
			}
			if len(c.Settings) > maxSaid || len(c.expect) > maxSaid {
				t.Errorf("%d settings, %d kinds of sockets", len(c.Settings), len(c.expect))
			}
		})
	}
}

func numbered(format string, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}
