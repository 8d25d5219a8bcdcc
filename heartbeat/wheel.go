package heartbeat

import "math/bits"

// wheel is a hierarchical timing wheel (Varghese and Lauck, 1987): to insert,
// to remove and to expire cost the same however many handles wait. A handle
// stands at the level of the highest byte in which its tick differs from the
// present, in the slot of that byte's value. When the present gets there it
// moves to a lower level. The links are in the handles themselves.
//
// A wheel is not safe for concurrent use.
type wheel struct {
	now   uint64 // the last tick that was expired
	slots [levels][256]*Handle
	// used has a bit for each slot that may have handles. Removal leaves it:
	// the slot's turn comes and goes with nothing in it.
	used [levels][4]uint64
}

const (
	levels  = 5
	farAway = 1<<(8*levels) - 1 // ticks; 34 years of milliseconds
)

// insert makes h expire at its due tick, the next one at the earliest.
func (w *wheel) insert(h *Handle) {
	h.due = min(max(h.due, w.now+1), w.now|farAway)
	level := (bits.Len64(h.due^w.now) - 1) / 8
	slot := byte(h.due >> (8 * level))
	head := &w.slots[level][slot]
	h.next, h.prev = *head, head
	if h.next != nil {
		h.next.prev = &h.next
	}
	*head = h
	w.used[level][slot/64] |= 1 << (slot % 64)
}

// remove takes h out, which must be in.
func (w *wheel) remove(h *Handle) {
	*h.prev = h.next
	if h.next != nil {
		h.next.prev = h.prev
	}
	h.next, h.prev = nil, nil
}

// next is the tick at which there may be something to do.
func (w *wheel) next() (tick uint64, ok bool) {
	_, tick, ok = w.turn()
	return tick, ok
}

// turn finds the next slot that may have handles. Those of a lower level come
// before all of a higher one.
func (w *wheel) turn() (level int, tick uint64, ok bool) {
	for level = range levels {
		at := int(byte(w.now>>(8*level))) + 1
		for at < 256 {
			if rest := w.used[level][at/64] >> (at % 64); rest != 0 {
				at += bits.TrailingZeros64(rest)
				above := w.now >> (8 * (level + 1)) << (8 * (level + 1))
				return level, above | uint64(at)<<(8*level), true
			}
			at = (at/64 + 1) * 64
		}
	}
	return 0, 0, false
}

// advance moves the present to now and hands out what has expired by then.
func (w *wheel) advance(now uint64, expired func(*Handle)) {
	for w.now < now {
		level, tick, ok := w.turn()
		if !ok || tick > now {
			w.now = now
			return
		}
		w.now = tick
		slot := byte(tick >> (8 * level))
		w.used[level][slot/64] &^= 1 << (slot % 64)
		h := reversed(w.slots[level][slot])
		w.slots[level][slot] = nil
		for h != nil {
			next := h.next
			h.next, h.prev = nil, nil
			if h.due <= tick {
				expired(h)
			} else {
				w.insert(h)
			}
			h = next
		}
	}
}

// reversed is a slot's list in the order of insertion.
func reversed(h *Handle) (first *Handle) {
	for h != nil {
		h.next, first, h = first, h, h.next
	}
	return first
}
