package cli

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"os/exec"

	"github.com/spf13/cobra"

	"deadpeer/internal/engine"
)

// Exit codes of programs that could not be started, as of env(1).
const (
	exitCannotRun = 126
	exitNotFound  = 127
)

func (a *app) run() *cobra.Command {
	var policy policyFlags
	var inFlight, enforce bool
	cmd := &cobra.Command{
		Use:   "run [flags] -- PROGRAM [ARG...]",
		Short: "Start a program with a keepalive policy on all its connections",
		Long: `run starts a program in a cgroup of its own and gives every connection of it, and
of whatever it starts, the policy before the program has it: programs that know
nothing of keepalive, and static ones, too. It takes BPF.

deadpeer becomes the program: pid, terminal, exit code and what signals do are
the program's own. The policy ends with the last process in the cgroup; until then
new connections have it rather than one of attach --new, or of a run around it.
What the program sets itself later holds, unless --enforce is given: then it
cannot weaken the policy; its calls succeed and do no more than it allows.
Programs in Go need that: package net sets 15 s and 9 probes 15 s apart on each
connection, unless it is told otherwise.

Of signals that are ignored the program finds HUP, INT and those of job control
ignored, the others not: where systemd ignores PIPE for a service, env
--ignore-signal=PIPE before the program does it again.`,
		Example: `  sudo deadpeer run --within 30s --enforce -- setpriv --reuid app --regid app --init-groups ./server
  sudo deadpeer run --profile lan -- psql -h db`,
		Args: arguments(1, math.MaxInt),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := policy.attachable(inFlight)
			if err == nil && (p.Idle == 0 || p.Interval == 0 || p.Probes == 0) {
				err = errors.New("give --within, --profile, or all of --idle, --interval and --probes")
			}
			if err != nil {
				return usage(err)
			}
			err = a.engine().RunProgram(cmd.Context(), engine.ProgramRequest{
				Args: args, Env: os.Environ(), Policy: p, Enforce: enforce, Watch: startWatcher,
			})
			notRun, ok := errors.AsType[*exec.Error](err)
			switch {
			case !ok:
				return err
			case errors.Is(notRun, exec.ErrNotFound), errors.Is(notRun, fs.ErrNotExist):
				return &exit{exitNotFound, err}
			}
			return &exit{exitCannotRun, err}
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	policy.add(cmd)
	f.BoolVar(&inFlight, "in-flight", false, "bound data in flight, too: a user timeout of idle + probes times interval")
	f.BoolVar(&enforce, "enforce", false, "do not let the program weaken the policy")
	f.BoolVar(&a.common.noBPF, "no-bpf", false, "go without BPF")
	_ = f.MarkHidden("no-bpf") // the flag was added just now
	return cmd
}

// watchRun is what startWatcher starts.
const watchRun = "watch-run"

// watcher cleans up after a program. It starts itself again, so that the
// program has no child that it knows nothing of.
func (a *app) watcher() *cobra.Command {
	return &cobra.Command{
		Use: watchRun + " ID", Hidden: true, Args: arguments(1, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			begun := os.NewFile(3, "begun")
			defer func() { _ = begun.Close() }()
			if os.Getenv(watchRun) == "" {
				cmd := watchCommand(args[0], begun)
				cmd.Env = append(os.Environ(), watchRun+"=1")
				return cmd.Start()
			}
			return a.engine().WatchProgram(args[0], begun)
		},
	}
}

func startWatcher(id string, begun *os.File) error { return watchCommand(id, begun).Run() }

func watchCommand(id string, begun *os.File) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", watchRun, id)
	cmd.ExtraFiles = []*os.File{begun}
	cmd.Args[0] = os.Args[0]
	cmd.Dir = "/"
	cmd.SysProcAttr = newSession()
	return cmd
}
