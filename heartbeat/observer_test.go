package heartbeat_test

import (
	"slices"
	"testing"
	"time"

	"deadpeer/heartbeat"
)

type observerFunc func(heartbeat.Event)

func (f observerFunc) Observe(e heartbeat.Event) { f(e) }

func TestObserverMayPanicAndUseTheHandle(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStory()
		opts := options(s)
		opts.Observer = heartbeat.Observers(s, observerFunc(func(e heartbeat.Event) {
			if e.Kind == heartbeat.Failed {
				_ = e.Handle.State()
				e.Handle.Remove()
			}
			panic("observer")
		}))
		m := start(t, opts)
		m.Add("a", heartbeat.PingFunc(fails))
		pass(100 * time.Second)
		s.want(t, "a", "30s sent", "30s failed", "30s removed")
	})
}

// What one observer does is nothing to the next.
func TestObserversArePanickedAlone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStory()
		opts := options(s)
		opts.Observer = heartbeat.Observers(observerFunc(func(heartbeat.Event) { panic("first") }), s)
		m := start(t, opts)
		m.Add("a", heartbeat.PingFunc(answers))
		pass(31 * time.Second)
		s.want(t, "a", "30s sent", "30s answered", "30s not_ready → up")
	})
}

// Every event of a target has the state it is in.
func TestEventsHaveTheState(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var got []string
		opts := options(nil)
		opts.Observer = observerFunc(func(e heartbeat.Event) {
			if e.Handle != nil {
				got = append(got, e.State.String())
			}
		})
		m := start(t, opts)
		h := m.Add("a", heartbeat.PingFunc(answers))
		pass(61 * time.Second)
		h.Remove()
		if want := []string{"not_ready", "up", "up", "up", "up", "up"}; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}
