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
			if *f.to, err = readLimit("/proc/sys/net/ipv4/"+f.name, f.absent); err != nil {
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

func readLimit(file string, absent int) (int, error) {
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
