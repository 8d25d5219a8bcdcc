package programs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/internal/testnet"
)

// terminal is a shell with job control on a pseudo-terminal (pty(7)).
type terminal struct {
	t      *testing.T
	master *os.File
	out    output
	seen   int // of out
}

// prompt is what the shell says when it waits for a line.
const prompt = "<ready>"

func newTerminal(t *testing.T, cmd *exec.Cmd) *terminal {
	t.Helper()
	master := must(os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0))(t)
	ok(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	n := must(unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN))(t)
	slave := must(os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0))(t)
	x := &terminal{t: t, master: master}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true} // descriptor 0
	cmd.Env = append(os.Environ(), "PS1="+prompt, "LC_ALL=C", "TERM=dumb", "HISTFILE=")
	ok(t, cmd.Start())
	ok(t, slave.Close())
	read := make(chan struct{})
	go func() { // ends with the last process on the terminal
		defer close(read)
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			if _, _ = x.out.Write(buf[:n]); err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed, or has exited
		_ = master.Close()
		<-read
	})
	return x
}

func (x *terminal) resize(rows, columns uint16) {
	x.t.Helper()
	ok(x.t, unix.IoctlSetWinsize(int(x.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns}))
}

func (x *terminal) send(keys string) {
	x.t.Helper()
	must(x.master.WriteString(keys))(x.t)
}

// expect waits for each of the texts, in this order, after what was expected
// before.
func (x *terminal) expect(texts ...string) {
	x.t.Helper()
	for _, want := range texts {
		for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
			all := x.out.String()
			if at := strings.Index(all[x.seen:], want); at >= 0 {
				x.seen += at + len(want)
				break
			}
			if time.Now().After(end) {
				x.t.Fatalf("the terminal did not show %q after\n%s\nbut\n%s", want, all[:x.seen], all[x.seen:])
			}
		}
	}
}

// foreground waits until the process group has the terminal.
func (x *terminal) foreground(group int) {
	x.t.Helper()
	for end := time.Now().Add(time.Minute); must(unix.IoctlGetInt(int(x.master.Fd()), unix.TIOCGPGRP))(x.t) != group; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			x.t.Fatalf("process group %d does not get the terminal", group)
		}
	}
}

// A program that is started on a terminal has it as if deadpeer were not
// there: window size, interrupt and suspend keys, job control in the
// foreground and the background, exit code, and death by a signal.
func TestRunOnTerminal(t *testing.T) {
	t.Parallel()
	world := must(testnet.New(t.Context()))(t)
	t.Cleanup(func() { ok(t, world.Close()) })
	h := newDeadpeerHost(t, must(world.Host("host"))(t))
	x := newTerminal(t, h.command("bash", "--norc", "--noprofile", "-i"))
	x.expect(prompt)
	x.resize(33, 99)
	x.send("run() { deadpeer run --within 30s -- \"$@\"; }\r")
	x.expect(prompt)

	x.send("run /usr/bin/python3 " + must(filepath.Abs("testdata/window.py"))(t) + "\r")
	x.expect("pid ")
	from := x.seen
	x.expect("99 33\r\n")
	var pid int
	must(fmt.Sscan(x.out.String()[from:], &pid))(t)
	x.foreground(pid) // deadpeer has become the program
	x.resize(44, 55)
	x.expect("55 44")
	x.send("\x1a") // Ctrl-Z
	x.expect("Stopped", prompt)
	x.send("echo code $?; jobs\r")
	x.expect(fmt.Sprintf("code %d", 128+int(unix.SIGTSTP)), "Stopped", prompt)
	x.send("fg\r")
	x.foreground(pid)
	x.resize(22, 77)
	x.expect("77 22")
	x.send("\x03") // Ctrl-C
	x.expect("^C", prompt)
	x.send("echo code $?\r")
	x.expect(fmt.Sprintf("code %d", 128+int(unix.SIGINT)), prompt)

	x.send("run sh -c 'exit 7'; echo code $?; run sh -c 'kill -TERM $$'; echo code $?\r")
	x.expect("code 7", "Terminated", fmt.Sprintf("code %d", 128+int(unix.SIGTERM)), prompt)

	// What cannot be started has the exit codes of env(1).
	for script, code := range map[string]string{"exit 0": "126", "#!/no/such/shell": "127", "#!/tmp": "126"} {
		name := filepath.Join(t.TempDir(), "script")
		ok(t, os.WriteFile(name, []byte(script+"\n"), 0o755))
		x.send("run " + name + "; echo code $?\r")
		x.expect("start program: ", "code "+code, prompt)
	}

	// In the background, where reading from the terminal stops it.
	x.send("deadpeer run --within 30s -- cat &\r")
	x.expect(prompt)
	x.send("until jobs | grep Stopped; do sleep 0.05; done; fg\r")
	x.expect("fg\r\n", "Stopped", "deadpeer run")
	x.send("hello\r")
	x.expect("hello", "hello")
	x.send("\x04") // Ctrl-D: the end of its input
	x.expect(prompt)
	x.send("echo code $?\r")
	x.expect("code 0", prompt)
	h.nothingLeft(t)
	x.send("exit\r")
}
