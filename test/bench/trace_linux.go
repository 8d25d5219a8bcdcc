package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/internal/netns"
	"deadpeer/internal/testnet"
	"deadpeer/internal/wire"
)

// Tracing is measured on made-up traffic: of many connections, each with a
// probe and its answer a second, both programs seeing the same packets at the
// same time.
const (
	tracedFlows   = 50_000 // so many probes a second
	tracedSeconds = 6
	probePort     = 40000
)

// traced is what a tracer saw.
type traced struct {
	Segments, Dropped uint64
	Probes, Answers   int
	Forgotten         uint64
}

// benchTrace runs package wire beside tcpdump and prints the table.
func (o options) benchTrace(ctx context.Context, dir string) (err error) {
	world, err := testnet.New(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, world.Close()) }()
	from, err := world.Host("prober")
	if err != nil {
		return err
	}
	to, err := world.Host("tracer")
	if err != nil {
		return err
	}
	link, err := world.Connect(from, to)
	if err != nil {
		return err
	}
	out, _ := link.Interface(from)
	in, _ := link.Interface(to)

	var seen bytes.Buffer
	tracer := exec.CommandContext(ctx, o.self, role, "trace", in)
	tracer.Stdout, tracer.Stderr = &seen, os.Stderr
	stop, err := startTold(to, tracer)
	if err != nil {
		return err
	}
	dump, said := o.tcpdump(ctx, in, filepath.Join(dir, "probes.pcap"))
	if dump != nil {
		if err := to.Start(dump); err != nil {
			return fmt.Errorf("start tcpdump: %w", err)
		}
		time.Sleep(time.Second) // it says "listening" before it does
	}
	sender := exec.CommandContext(ctx, o.self, role, "probes", out, strconv.Itoa(tracedFlows), strconv.Itoa(tracedSeconds))
	sender.Stderr = os.Stderr
	if err := from.Start(sender); err != nil {
		return fmt.Errorf("start sender: %w", err)
	}
	err = sender.Wait()
	time.Sleep(time.Second) // for what is on its way
	err = errors.Join(err, stop.Close(), tracer.Wait())
	if dump != nil {
		err = errors.Join(err, dump.Process.Signal(os.Interrupt), dump.Wait())
	}
	if err != nil {
		return err
	}
	var t traced
	if err := json.Unmarshal(seen.Bytes(), &t); err != nil {
		return fmt.Errorf("read result of trace: %w", err)
	}
	return printTrace(t, tracer, dump, said)
}

// tcpdump is the program to compare with, nil when it is not there.
func (o options) tcpdump(ctx context.Context, device, file string) (*exec.Cmd, *bytes.Buffer) {
	program, err := exec.LookPath("tcpdump")
	if err != nil {
		program = "/usr/sbin/tcpdump"
		if _, err := os.Stat(program); err != nil {
			return nil, nil
		}
	}
	// -Z root: it would else give up its access to the folder.
	cmd := exec.CommandContext(ctx, program, "-i", device, "-w", file, "-Z", "root", "tcp")
	said := &bytes.Buffer{}
	cmd.Stderr = said
	return cmd, said
}

func printTrace(t traced, tracer, dump *exec.Cmd, said *bytes.Buffer) error {
	const probes = tracedFlows * tracedSeconds
	fmt.Printf("\n%d connections, each with a probe and an answer a second, for %d s\n", tracedFlows, tracedSeconds)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\tsegments\tlost\tprobes\tanswers\tCPU us/probe\t")
	row := func(what string, segments uint64, probesSeen, answers string, cmd *exec.Cmd) {
		cpu := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\t%.2f\t\n", what, segments, 2*probes-int64(segments), probesSeen, answers, float64(cpu.Microseconds())/probes)
	}
	row("package wire: capture and events", t.Segments, strconv.Itoa(t.Probes), strconv.Itoa(t.Answers), tracer)
	if dump != nil {
		m := regexp.MustCompile(`(\d+) packets captured`).FindSubmatch(said.Bytes())
		if m == nil {
			return fmt.Errorf("read what tcpdump said: %q", said)
		}
		n, err := strconv.ParseUint(string(m[1]), 10, 64)
		if err != nil {
			return err
		}
		row("tcpdump -w", n, "-", "-", dump)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Printf("%d probes were sent; package wire was short of room for %d segments and %d connections (goal: none lost)\n", probes, t.Dropped, t.Forgotten)
	return nil
}

// startTold starts a program and waits until it says that it is ready. What is
// given back ends it.
func startTold(h *testnet.Host, cmd *exec.Cmd) (io.Closer, error) {
	told, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	cmd.ExtraFiles = []*os.File{w}
	err = h.Start(cmd)
	_ = w.Close() // the program has its own
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd, err)
	}
	if line, err := bufio.NewReader(r).ReadString('\n'); err != nil {
		return nil, fmt.Errorf("start %s: it said %q: %w", cmd, line, err)
	}
	return told, nil
}

// traceProbes counts the events on a device until stdin ends.
func traceProbes(ctx context.Context, args []string) (err error) {
	ns, err := netns.Current()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ns.Close()) }()
	capture, err := wire.OpenCapture(ns, wire.CaptureOptions{Interface: args[0]})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, capture.Close()) }()
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	ready := os.NewFile(3, "ready")
	_, err = ready.WriteString("ready\n")
	if err := errors.Join(err, ready.Close()); err != nil {
		return err
	}
	var t traced
	tracker := wire.NewTracker(wire.TrackerOptions{})
	emit := func(e *wire.Event) {
		switch e.Kind {
		case wire.Probe:
			t.Probes++
		case wire.Answer:
			t.Answers++
		}
	}
	var s wire.Segment
	err = capture.Each(ctx, func(p *wire.Packet) error {
		if p.Segment(&s) == wire.Taken {
			t.Segments++
			tracker.Feed(&s, emit)
		}
		return nil
	}, func(now time.Time) { tracker.Advance(now, emit) })
	if !errors.Is(err, context.Canceled) {
		return err
	}
	stats, err := capture.Stats()
	if err != nil {
		return err
	}
	t.Dropped, t.Forgotten = stats.Dropped, tracker.Forgotten()
	return json.NewEncoder(os.Stdout).Encode(t)
}

// sendProbes sends the probe and the answer of N connections a second on a
// device, for some seconds.
func sendProbes(args []string) error {
	device, err := net.InterfaceByName(args[0])
	if err != nil {
		return err
	}
	flows, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	lasts, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	to := &unix.SockaddrLinklayer{Ifindex: device.Index}
	probes, answers := make([][]byte, flows), make([][]byte, flows)
	for i := range flows {
		server := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), 5432)
		peer := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i / 1000)}), uint16(probePort+i%1000))
		seq, ack := uint32(i*7919), uint32(i*104729)
		probes[i] = bareACK(server, peer, seq-1, ack)
		answers[i] = bareACK(peer, server, ack, seq)
	}
	start, sent := time.Now(), 0
	for sent < flows*lasts {
		due := min(flows*lasts, int(time.Since(start)*time.Duration(flows)/time.Second))
		for ; sent < due; sent++ {
			for _, frame := range [][]byte{probes[sent%flows], answers[sent%flows]} {
				for {
					err := unix.Sendto(fd, frame, 0, to)
					if err == nil {
						break
					}
					if !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
						return os.NewSyscallError("sendto", err)
					}
				}
			}
		}
		time.Sleep(time.Millisecond)
	}
	return unix.Close(fd)
}

// bareACK is an Ethernet frame of a segment without data, to nobody: whoever
// listens gets it, no host answers.
func bareACK(src, dst netip.AddrPort, seq, ack uint32) []byte {
	const etherHeader, ipHeader, tcpHeader = 14, 20, 20
	b := make([]byte, 0, etherHeader+ipHeader+tcpHeader)
	b = append(b, 2, 0, 0, 0, 0, 0x99, 2, 0, 0, 0, 0, 0x98)
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IP)
	b = append(b, 0x45, 0)
	b = binary.BigEndian.AppendUint16(b, ipHeader+tcpHeader)
	b = append(b, 0, 0, 0x40, 0, 64, unix.IPPROTO_TCP, 0, 0)
	b = append(b, src.Addr().AsSlice()...)
	b = append(b, dst.Addr().AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, src.Port())
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	b = binary.BigEndian.AppendUint32(b, seq)
	b = binary.BigEndian.AppendUint32(b, ack)
	b = append(b, tcpHeader/4<<4, 0x10) // ACK
	return append(b, 1, 0, 0, 0, 0, 0)  // window 256; nobody checks the sums
}
