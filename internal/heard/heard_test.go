package heard_test

import (
	"testing"
	"testing/synctest"
	"time"

	"deadpeer/internal/heard"
)

func TestClock(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := heard.New()
		time.Sleep(time.Minute)
		if ago := c.Ago(); ago >= 0 {
			t.Errorf("before anything was heard: %v", ago)
		}
		c.Note()
		if ago := c.Ago(); ago != 0 {
			t.Errorf("at once: %v", ago)
		}
		time.Sleep(time.Second)
		if ago := c.Ago(); ago != time.Second {
			t.Errorf("after a second: %v", ago)
		}
		c = heard.New()
		c.Note() // in its first nanosecond
		time.Sleep(time.Second)
		if ago := c.Ago(); ago.Round(time.Millisecond) != time.Second {
			t.Errorf("heard when made: %v", ago)
		}
	})
}
