package linux

import "testing"

func TestBefore(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		release string
		want    bool
	}{
		{"5.15.0-204-generic", true},
		{"6.18.9+deb14-amd64", true},
		{"6.19-rc1", false},
		{"6.19.0", false},
		{"7.2.13+deb14-cloud-amd64", false},
		{"5", false},
		{"", false},
		{"unknown", false},
	} {
		if got := before(tt.release, 6, 19); got != tt.want {
			t.Errorf("%q: %v, want %v", tt.release, got, tt.want)
		}
	}
	if Before(2, 6) || !Before(1000, 0) {
		t.Error("the running kernel is neither newer than 2.6 nor older than 1000.0")
	}
}
