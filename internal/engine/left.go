package engine

// Leftover is something that a deadpeer left behind that was killed.
type Leftover struct {
	What string // "attachment 1a2b"
	Why  string // why it is of no use, or what is still to be done
	Done string // what Clean has done about it; "" when that did not succeed
}
