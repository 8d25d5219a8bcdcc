package journal

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"testing"

	"golang.org/x/sys/unix"
)

// helperEnv makes the test binary do a job in a folder, as another process.
const helperEnv = "JOURNAL_TEST_HELPER"

func TestMain(m *testing.M) {
	if job := os.Getenv(helperEnv); job != "" {
		if err := help(job, os.Getenv("JOURNAL_TEST_DIR")); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// help tells its parent what is durable, line by line, until it is killed.
func help(job, dir string) error {
	switch job {
	case "append":
		j, err := Open(dir, Options{CompactAt: 8192})
		if err != nil {
			return err
		}
		for n := uint64(1); ; n++ {
			if err := j.Append([]Record{reuse(n, 1), keep(n+1_000_000, 60)}); err != nil {
				return err
			}
			fmt.Println("changed", n)
			fmt.Println("restoring", n+1_000_000)
			if err := j.Append([]Record{restored(n + 1_000_000)}); err != nil {
				return err
			}
			fmt.Println("restored", n+1_000_000)
		}
	case "full":
		signal.Ignore(unix.SIGXFSZ)
		j, err := Open(dir, Options{})
		if err != nil {
			return err
		}
		limit := uint64(headerSize + 4*maxRecordSize)
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
			return err
		}
		many := make([]Record, 10)
		for i := range many {
			many[i] = keep(uint64(i+100), 60)
		}
		if err := j.Append([]Record{keep(1, 60)}); err != nil {
			return err
		}
		if err := j.Append(many); !errors.Is(err, unix.EFBIG) {
			return fmt.Errorf("over the limit: got %w, want EFBIG", err)
		}
		return j.Append([]Record{keep(2, 60)})
	case "lock":
		l, err := Lock(context.Background(), dir)
		if err != nil {
			return err
		}
		defer l.Close()
		fmt.Println("locked")
		_, err = io.Copy(io.Discard, os.Stdin) // until the parent is gone
		return err
	default:
		return errors.New("no such job: " + job)
	}
}

// start runs a helper; its lines come from the scanner.
func start(t *testing.T, job, dir string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), helperEnv+"="+job, "JOURNAL_TEST_DIR="+dir)
	cmd.Stderr = os.Stderr
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	return cmd, bufio.NewScanner(out)
}
