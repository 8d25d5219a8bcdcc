package engine

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"deadpeer/keepalive"
)

// hostDefaults are what a network namespace gives its sockets (tcp(7)).
type hostDefaults struct {
	policy keepalive.Policy // without a user timeout, of which there is no default
}

// defaults reads them in the namespace. Needs CAP_SYS_ADMIN unless it is our
// own.
func (s *space) defaults() (d hostDefaults, err error) {
	err = s.ns.Do(func() error {
		for name, value := range map[string]func(int){
			"tcp_keepalive_time":   func(v int) { d.policy.Idle = time.Duration(v) * time.Second },
			"tcp_keepalive_intvl":  func(v int) { d.policy.Interval = time.Duration(v) * time.Second },
			"tcp_keepalive_probes": func(v int) { d.policy.Probes = v },
		} {
			b, err := os.ReadFile("/proc/sys/net/ipv4/" + name)
			if err != nil {
				return err
			}
			v, err := strconv.Atoi(strings.TrimSpace(string(b)))
			if err != nil {
				return fmt.Errorf("read %s: %w", name, err)
			}
			value(v)
		}
		return nil
	})
	return d, err
}
