package cli

import (
	"regexp"
	"slices"
	"testing"

	"deadpeer/internal/conn"
)

// What a filter understands is told by its topic, word by word.
func TestFilterTopicHasEveryWord(t *testing.T) {
	t.Parallel()
	words := regexp.MustCompile(`[a-z0-9-]+`).FindAllString(filterTopic().Long, -1)
	want := conn.Predicates()
	for _, v := range conn.Verdicts() {
		want = append(want, v.String())
	}
	for _, w := range want {
		if !slices.Contains(words, w) {
			t.Errorf("the topic has no word of %q", w)
		}
	}
}
