package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// The agent is the first process of a pid namespace on the server: with the
// peers' processes out of sight of /proc, whoever looks for owners meets what
// a real server has. It starts the holders of the server's ends and runs what
// is measured. Its death ends them all.

// order is what the agent is told, a line of JSON each.
type order struct {
	Accept    []int    // start holders of so many connections each
	KeepAlive bool     // of those
	Settle    bool     // wait until they have all of them
	Run       []string // run a program, output to nowhere
	Want      bool     // hand its output back
	Peak      bool     // watch its memory, which disturbs its time
}

// outcome is the agent's answer.
type outcome struct {
	Error  string
	Wall   time.Duration
	Peak   int64 // bytes of resident memory at most
	Output []byte
}

const serverPort = 5432

func agent(ctx context.Context) error {
	if err := ownProc(); err != nil {
		return err
	}
	in, out := json.NewDecoder(bufio.NewReader(os.Stdin)), json.NewEncoder(os.Stdout)
	a := &holders{}
	for {
		var o order
		if err := in.Decode(&o); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		var result outcome
		var err error
		switch {
		case len(o.Accept) > 0:
			err = a.accept(ctx, o)
		case o.Settle:
			err = a.settle()
		default:
			result, err = runProgram(ctx, o)
		}
		if err != nil {
			result.Error = err.Error()
		}
		if err := out.Encode(result); err != nil {
			return err
		}
	}
}

// ownProc mounts the procfs of this pid namespace, an empty /run and a bpffs,
// for it alone.
func ownProc() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount proc: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	// Where it is not allowed, BPF is not either.
	if err := unix.Mount("bpf", "/sys/fs/bpf", "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=700"); err != nil && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("mount bpffs: %w", err)
	}
	return nil
}

// holders are processes that hold connections.
type holders struct {
	running []*exec.Cmd
	inputs  []io.Closer
	outputs []*bufio.Reader
}

func (h *holders) start(cmd *exec.Cmd, start func(*exec.Cmd) error) error {
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := start(cmd); err != nil {
		return fmt.Errorf("start holder: %w", err)
	}
	h.running, h.inputs, h.outputs = append(h.running, cmd), append(h.inputs, in), append(h.outputs, bufio.NewReader(out))
	return nil
}

// end ends them all.
func (h *holders) end() error {
	var errs []error
	for i, in := range h.inputs {
		errs = append(errs, in.Close(), h.running[i].Wait())
	}
	return errors.Join(errs...)
}

// settle waits until all are ready.
func (h *holders) settle() error {
	for _, out := range h.outputs {
		if line, err := out.ReadString('\n'); line != "ready\n" {
			return fmt.Errorf("a holder has ended: %w", err)
		}
	}
	return nil
}

func (h *holders) accept(ctx context.Context, o order) error {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{Port: serverPort})
	if err != nil {
		return err
	}
	file, err := l.File()
	if err != nil {
		return errors.Join(err, l.Close())
	}
	if err := unix.SetNonblock(int(file.Fd()), false); err != nil {
		return err
	}
	if o.KeepAlive { // inherited by what is accepted
		if err := unix.SetsockoptInt(int(file.Fd()), unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1); err != nil {
			return os.NewSyscallError("setsockopt SO_KEEPALIVE", err)
		}
	}
	for _, n := range o.Accept {
		cmd := exec.CommandContext(ctx, "/proc/self/exe", role, "accept", strconv.Itoa(n))
		cmd.ExtraFiles = []*os.File{file}
		if err := h.start(cmd, (*exec.Cmd).Start); err != nil {
			return err
		}
	}
	return errors.Join(l.Close(), file.Close())
}

// runProgram runs a program to its end.
func runProgram(ctx context.Context, o order) (outcome, error) {
	cmd := exec.CommandContext(ctx, o.Run[0], o.Run[1:]...)
	var output, complaint bytes.Buffer
	if cmd.Stderr = &complaint; o.Want {
		cmd.Stdout = &output
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return outcome{}, err
	}
	var peak chan int64
	if o.Peak {
		peak = make(chan int64, 1)
		go func() { peak <- watchPeak(cmd.Process.Pid) }()
	}
	err := cmd.Wait()
	r := outcome{Wall: time.Since(start), Output: output.Bytes()}
	if err != nil {
		return r, fmt.Errorf("%s: %w: %s", o.Run, err, complaint.Bytes())
	}
	if peak != nil {
		r.Peak = <-peak
	}
	return r, nil
}

// watchPeak reads VmHWM of a process for as long as it lives. The maximum of
// getrusage(2) will not do: it begins at that of the process that forked.
func watchPeak(pid int) (peak int64) {
	for {
		data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
		if err != nil {
			return peak
		}
		_, rest, ok := bytes.Cut(data, []byte("VmHWM:"))
		if !ok {
			return peak // a zombie has none
		}
		line, _, _ := bytes.Cut(rest, []byte("kB"))
		if n, err := strconv.ParseInt(string(bytes.TrimSpace(line)), 10, 64); err == nil {
			peak = n << 10
		}
		time.Sleep(200 * time.Microsecond)
	}
}
