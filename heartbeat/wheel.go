package heartbeat

import "math/bits"

// wheel is a hierarchical timing wheel (Varghese and Lauck, 1987): to insert,
// to remove and to expire cost the same however many handles wait. A handle
// stands at the lowest level that reaches as far as its tick, in the slot of
// that tick. When the present gets to a slot above the lowest level its handles
// move down. The links are in the handles themselves.
//
// Levels go by distance, and not by which bits of two ticks differ: else all
// handles that wait would move at the same time when a high bit of the present
// changes, a million of them in some tenths of a second.
//
// A wheel is not safe for concurrent use.
type wheel struct {
	now   uint64 // the last tick that was expired
	slots [levels * perLevel]*Handle
	// used has a bit for each slot that may have handles. Removal leaves it:
	// the slot's turn comes and goes with nothing in it.
	used [levels * perLevel / 64]uint64
}

// A slot is a tick at the lowest level, of a millisecond, and above that 256
// ticks, 4.4 minutes and 75 hours: few handles at a time move down, and for
// periods up to 4.4 minutes no more than 256 ticks' worth.
const (
	levels   = 4
	perLevel = 1024
	lowBits  = 8
	highBits = 10
	farAway  = 1<<(lowBits+(levels-1)*highBits) - 1 // ticks; 8.7 years
)

// width is how many slots a level has, of 1<<shift ticks each.
func width(level int) (slots uint64, shift int) {
	if level == 0 {
		return 1 << lowBits, 0
	}
	return 1 << highBits, lowBits + (level-1)*highBits
}

// insert makes h expire at its due tick, the next one at the earliest.
func (w *wheel) insert(h *Handle) {
	h.due = min(max(h.due, w.now+1), w.now+farAway)
	level := 0
	if far := bits.Len64(h.due - w.now); far > lowBits {
		level = (far-lowBits-1)/highBits + 1
	}
	slots, shift := width(level)
	slot := uint64(level)*perLevel + h.due>>shift%slots
	head := &w.slots[slot]
	h.next, h.prev = *head, head
	if h.next != nil {
		h.next.prev = &h.next
	}
	*head = h
	w.used[slot/64] |= 1 << (slot % 64)
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
	for level := range levels {
		if t, found := w.nextOf(level); found && (!ok || t < tick) {
			tick, ok = t, true
		}
	}
	return tick, ok
}

// nextOf is the tick of a level's next slot that may have handles.
func (w *wheel) nextOf(level int) (tick uint64, ok bool) {
	slots, shift := width(level)
	words := w.used[level*perLevel/64:][:slots/64]
	from := w.now>>shift + 1
	first := from % slots
	for i := range uint64(len(words)) + 1 { // the first word twice: for what is behind from
		at := (first/64 + i) % uint64(len(words))
		word := words[at]
		switch i {
		case 0:
			word &^= 1<<(first%64) - 1
		case uint64(len(words)):
			word &= 1<<(first%64) - 1
		}
		if word != 0 {
			slot := at*64 + uint64(bits.TrailingZeros64(word))
			return (from + (slot-first+slots)%slots) << shift, true
		}
	}
	return 0, false
}

// advance moves the present to now and hands out what has expired by then.
func (w *wheel) advance(now uint64, expired func(*Handle)) {
	for w.now < now {
		tick, ok := w.next()
		if !ok || tick > now {
			w.now = now
			return
		}
		w.now = tick
		for level := levels - 1; level >= 0; level-- {
			if slots, shift := width(level); tick%(1<<shift) == 0 {
				w.empty(uint64(level)*perLevel+tick>>shift%slots, expired)
			}
		}
	}
}

// empty hands out a slot's handles that are due, and moves the others down.
func (w *wheel) empty(slot uint64, expired func(*Handle)) {
	w.used[slot/64] &^= 1 << (slot % 64)
	h := reversed(w.slots[slot])
	w.slots[slot] = nil
	for h != nil {
		next := h.next
		h.next, h.prev = nil, nil
		if h.due <= w.now {
			expired(h)
		} else {
			w.insert(h)
		}
		h = next
	}
}

// reversed is a slot's list in the order of insertion.
func reversed(h *Handle) (first *Handle) {
	for h != nil {
		h.next, first, h = first, h, h.next
	}
	return first
}
