package demo

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/internal/testnet"
)

// stage is the scene: a server, and three places that clients come from,
// around one router.
type stage struct {
	net                          *testnet.Net
	server, laptop, desk, office *testnet.Host
	toLaptop                     *testnet.Link
	address                      netip.AddrPort // of the lock server
	locks                        *lockProcess
	clients                      []*client
	dir                          string // of the engine, for its journal
}

// build sets the stage. What there is of it after an error close removes.
func (s *stage) build(ctx context.Context) (err error) {
	if s.dir, err = os.MkdirTemp("", "deadpeer-demo-"); err != nil { // 0700
		return fmt.Errorf("make runtime folder: %w", err)
	}
	if s.net, err = testnet.New(ctx); err != nil {
		return needKernel(err)
	}
	router, err := s.net.Router("router")
	if err != nil {
		return err
	}
	join := func(name string) (*testnet.Host, *testnet.Link, error) {
		h, err := s.net.Host(name)
		if err != nil {
			return nil, nil, err
		}
		l, err := s.net.Connect(h, router)
		if err != nil {
			return nil, nil, needKernel(err)
		}
		return h, l, h.RouteVia(l)
	}
	var toServer *testnet.Link
	if s.server, toServer, err = join("server"); err != nil {
		return err
	}
	if s.laptop, s.toLaptop, err = join("laptop"); err != nil {
		return err
	}
	if s.desk, _, err = join("desk"); err != nil {
		return err
	}
	if s.office, _, err = join("office"); err != nil {
		return err
	}
	s.address = netip.AddrPortFrom(toServer.IPv4(s.server), port)
	s.locks, err = startLocks(ctx, s.server, s.address)
	return err
}

// needKernel says what a kernel without the means lacks.
func needKernel(err error) error {
	for _, e := range []error{errors.ErrUnsupported, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT} {
		if errors.Is(err, e) {
			return fmt.Errorf("%w (%w: the kernel needs veth, bridge and nf_tables with the netdev family)", err, errors.ErrUnsupported)
		}
	}
	return err
}

// dial connects a client that close will end.
func (s *stage) dial(ctx context.Context, from *testnet.Host) (*client, error) {
	c, err := dial(ctx, from, s.address)
	if err == nil {
		s.clients = append(s.clients, c)
	}
	return c, err
}

// netns is the server's namespace as the engine takes it.
func (s *stage) netns() string { return fmt.Sprintf("/proc/self/fd/%d", s.server.NS().Fd()) }

// close removes everything.
func (s *stage) close() error {
	var errs []error
	if s.toLaptop != nil {
		// What the clients say in parting must arrive, or the server's end of
		// it would go on retransmitting and keep its namespace for minutes.
		errs = append(errs, s.toLaptop.Heal())
	}
	for _, c := range s.clients {
		errs = append(errs, c.conn.Close())
	}
	if s.locks != nil {
		errs = append(errs, s.locks.stop())
	}
	if s.net != nil {
		errs = append(errs, s.net.Close())
	}
	if s.dir != "" {
		errs = append(errs, os.RemoveAll(s.dir))
	}
	return errors.Join(errs...)
}

// lockProcess is the lock server's process.
type lockProcess struct {
	cmd    *exec.Cmd
	stdin  io.Closer // its end is the process's
	stdout *os.File
	lines  *bufio.Reader // of stdout
	stderr bytes.Buffer
}

// startLocks starts this program again as the lock server on host, and waits
// until it listens.
func startLocks(ctx context.Context, host *testnet.Host, addr netip.AddrPort) (p *lockProcess, err error) {
	// Not under ctx: the lock server stays until the stage is taken down.
	p = &lockProcess{cmd: exec.Command("/proc/self/exe", "demo", LockServerCommand, addr.String())}
	p.cmd.Args[0] = os.Args[0]
	// The terminal's signals are for the demo only.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.Stderr = &p.stderr
	p.cmd.WaitDelay = time.Second
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start lock server: %w", err)
	}
	stdout, w, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start lock server: %w", err), p.stdin.Close())
	}
	p.stdout, p.lines, p.cmd.Stdout = stdout, bufio.NewReader(stdout), w
	err = host.Start(p.cmd)
	_ = w.Close() // the process has its own
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start lock server: %w", err), p.stdin.Close(), stdout.Close())
	}
	line, err := p.line(ctx)
	if err == nil && line != "listening on "+addr.String() {
		err = fmt.Errorf("it said %q", line)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start lock server: %w", err), p.stop())
	}
	return p, nil
}

func (p *lockProcess) pid() int { return p.cmd.Process.Pid }

// line is the next line the process says.
func (p *lockProcess) line(ctx context.Context) (string, error) {
	if err := p.stdout.SetReadDeadline(time.Now().Add(answerWithin)); err != nil {
		return "", fmt.Errorf("read from lock server: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = p.stdout.SetReadDeadline(time.Unix(1, 0)) })()
	line, err := p.lines.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("read from lock server: %w", err)
	}
	return strings.TrimSuffix(line, "\n"), nil
}

// stop ends the process and waits for it.
func (p *lockProcess) stop() error {
	_ = p.stdin.Close() // an error of the pipe shows as one of the process
	kill := time.AfterFunc(answerWithin, func() { _ = p.cmd.Process.Kill() })
	defer kill.Stop()
	// It may still have things to say: an open pipe keeps it from blocking,
	// a closed one would kill it by SIGPIPE.
	err := p.cmd.Wait()
	if said := strings.TrimSpace(p.stderr.String()); err != nil && said != "" {
		err = fmt.Errorf("%w: %s", err, said)
	}
	if err != nil {
		err = fmt.Errorf("end lock server: %w", err)
	}
	return errors.Join(err, p.stdout.Close())
}
