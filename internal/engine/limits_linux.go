package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"deadpeer/internal/linux"
	"deadpeer/internal/netns"
	"deadpeer/keepalive"
)

// readLimits reads the sysctls of a network namespace (ip-sysctl.rst). The
// kernel shows those of the thread that opens the file.
func readLimits(n *netns.NS) (l limits, err error) {
	err = n.Do(func() error {
		var early, thin, rtoMax, fin int
		for _, f := range []struct {
			name   string
			to     *int
			absent int // in kernels without it
		}{
			{"tcp_retries2", &l.retries2, 15},
			{"tcp_orphan_retries", &l.orphanRetries, 0},
			{"tcp_syn_retries", &l.synRetries, 6},
			{"tcp_synack_retries", &l.synackRetries, 5},
			{"tcp_syn_linear_timeouts", &l.synLinear, 0}, // Linux 6.5
			{"tcp_fin_timeout", &fin, 60},
			{"tcp_rto_max_ms", &rtoMax, 120_000}, // Linux 6.15
			{"tcp_early_retrans", &early, 3},
			{"tcp_thin_linear_timeouts", &thin, 0},
		} {
			if *f.to, err = readSysctl(ipv4Sysctls+f.name, f.absent); err != nil {
				return err
			}
		}
		l.finTimeout, l.rtoMax = time.Duration(fin)*time.Second, time.Duration(rtoMax)*time.Millisecond
		if l.synackMax = l.rtoMax; linux.Before(6, 19) {
			l.synackMax = 120 * time.Second // TCP_RTO_MAX
		}
		l.noLossProbe = early != 3 && early != 4 // tcp_schedule_loss_probe
		l.thinLinear = thin != 0
		return nil
	})
	if err != nil {
		return limits{}, fmt.Errorf("read limits: %w", err)
	}
	return l, nil
}

// readDefaults reads what a network namespace gives sockets without values of
// their own (tcp(7)), but for a user timeout, of which there is none.
func readDefaults(n *netns.NS) (p keepalive.Policy, err error) {
	err = n.Do(func() error {
		idle, idleErr := readSysctl(ipv4Sysctls+"tcp_keepalive_time", 0)
		interval, intervalErr := readSysctl(ipv4Sysctls+"tcp_keepalive_intvl", 0)
		probes, probesErr := readSysctl(ipv4Sysctls+"tcp_keepalive_probes", 0)
		p = keepalive.Policy{Idle: time.Duration(idle) * time.Second, Interval: time.Duration(interval) * time.Second, Probes: probes}
		return errors.Join(idleErr, intervalErr, probesErr)
	})
	return p, err
}

const ipv4Sysctls = "/proc/sys/net/ipv4/"

// readSysctl gives the number in a file, or what stands for it in kernels
// without the file.
func readSysctl(file string, absent int) (int, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return absent, nil
	}
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 32)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%s: %q is not a number from 0 on", file, b)
	}
	return int(n), nil
}
