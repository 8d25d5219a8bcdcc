package wire

// CaptureOptions configure a Capture. Zero values mean the defaults.
type CaptureOptions struct {
	Interface string // its name; "" or "any" for all of the namespace
	RingBytes int    // memory for packets not yet read (16 MiB)
}

// CaptureStats count packets.
type CaptureStats struct {
	Received uint64 // TCP segments that the kernel handed over
	Dropped  uint64 // those it could not, for want of room in the ring
}

// snapLength holds any IPv4 or usual IPv6 header and TCP header together.
const snapLength = 192
