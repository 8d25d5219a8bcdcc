package keepalive

import (
	"errors"
	"time"
)

// restoreFD sets what differs, in an order that is safe for the same reasons
// as setFD's: keepalive that is to be off goes off first; with probes
// unanswered it is off meanwhile, so that a count or a time that is over now
// does not end the connection before a whole idle time has passed.
func restoreFD(sock uintptr, want Settings) error {
	fd := int(sock)
	now, err := getFD(sock)
	if err != nil || now == want {
		return err
	}
	values := []setting{
		{keepIntvl(), PartInterval, differs(want.Interval, now.Interval, time.Second)},
		{keepCnt(), PartProbes, differs(want.Probes, now.Probes, 1)},
		{keepIdle(), PartIdle, differs(want.Idle, now.Idle, time.Second)},
	}
	timeout := setting{userTimeout(), PartUserTimeout, -1}
	if now.UserTimeout >= 0 {
		timeout.value = differs(want.UserTimeout, now.UserTimeout, time.Millisecond)
	}
	if want.UserTimeout == 0 || now.UserTimeout > 0 && want.UserTimeout > now.UserTimeout {
		values = append([]setting{timeout}, values...)
	} else {
		values = append(values, timeout)
	}

	off := now.KeepAlive && (!want.KeepAlive || unanswered(fd) > 0)
	var errs []error
	if off {
		errs = append(errs, set(fd, soKeepAlive(), 0))
	}
	for _, s := range values {
		if s.value < 0 {
			continue
		}
		if err := s.set(fd); err != nil {
			errs = append(errs, s.blame(err))
		}
	}
	if want.KeepAlive && (off || !now.KeepAlive) {
		errs = append(errs, set(fd, soKeepAlive(), 1))
	}
	return errors.Join(errs...)
}

// differs is the value to set, or -1 for none: what is there already, or what
// was not told when it was read.
func differs[T int | time.Duration](want, now, unit T) int {
	if want < 0 || want == now {
		return -1
	}
	return int((want + unit - 1) / unit)
}
