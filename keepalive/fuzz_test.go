package keepalive

import "testing"

// Whatever a kernel answers, reading it does not panic and makes sense.
func FuzzHeardFreeBSD(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(make([]byte, 55))
	f.Add(append([]byte{4}, make([]byte, 255)...))
	f.Fuzz(func(t *testing.T, info []byte) {
		d, connected, err := heardFreeBSD(info)
		if d < 0 || (err != nil || !connected) && d != 0 {
			t.Errorf("%v, %v, %v", d, connected, err)
		}
	})
}

func FuzzBefore(f *testing.F) {
	f.Add("5.8-RELEASE")
	f.Add("5.6.3")
	f.Add("999999999999999999999.1")
	f.Fuzz(func(t *testing.T, release string) {
		if before(release, 5, 8) && !before(release, 6, 0) {
			t.Errorf("%q is before 5.8 but not before 6.0", release)
		}
	})
}
