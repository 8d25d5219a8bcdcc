package conn

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// ParseDuration reads a duration as time.ParseDuration does, with the units
// d (24 h) and w (7 d) besides: "90s", "2m", "1d12h", "1.5w".
func ParseDuration(s string) (time.Duration, error) {
	rest, negative := s, false
	if rest != "" && (rest[0] == '-' || rest[0] == '+') {
		negative, rest = rest[0] == '-', rest[1:]
	}
	if rest == "0" {
		return 0, nil
	}
	var sum time.Duration
	for first := true; first || rest != ""; first = false {
		unitAt := strings.IndexFunc(rest, func(r rune) bool { return r != '.' && (r < '0' || r > '9') })
		if unitAt < 0 {
			return 0, fmt.Errorf("parse duration %.40q: no unit (write 10s, 5m, 2h, 1d or 1w)", s)
		}
		end := strings.IndexFunc(rest[unitAt:], func(r rune) bool { return r == '.' || '0' <= r && r <= '9' })
		if end < 0 {
			end = len(rest)
		} else {
			end += unitAt
		}
		number, unit := rest[:unitAt], rest[unitAt:end]
		rest = rest[end:]
		times := time.Duration(1)
		switch unit {
		case "d":
			unit, times = "h", 24
		case "w":
			unit, times = "h", 24*7
		}
		d, err := time.ParseDuration(number + unit)
		if err != nil || number == "" {
			return 0, fmt.Errorf("parse duration %.40q: not a number with a unit (write 10s, 5m, 2h, 1d or 1w)", s)
		}
		if d > math.MaxInt64/times || sum > math.MaxInt64-d*times {
			return 0, fmt.Errorf("parse duration %.40q: too long", s)
		}
		sum += d * times
	}
	if negative {
		return -sum, nil
	}
	return sum, nil
}
