package firebird_test

import (
	"log"

	"deadpeer/heartbeat"
	"deadpeer/heartbeat/firebird"
)

// A connection that tells whether the server answers.
func Example() {
	target, err := firebird.New("watch:secret@10.0.0.9:3050/employee")
	if err != nil {
		log.Fatal(err)
	}
	defer target.Close()
	heartbeat.New(heartbeat.Options{}).Add("employee", target)
}
