package conn_test

import (
	"errors"
	"fmt"

	"deadpeer/internal/conn"
)

func ExampleParseFilter() {
	f, err := conn.ParseFilter([]string{"state", "established", "sport=5432", "heard > 1d"}, conn.Resolver{})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(f)

	_, err = conn.ParseFilter([]string{"state", "established", "sprot=5432"}, conn.Resolver{})
	if wrong, ok := errors.AsType[*conn.FilterError](err); ok {
		fmt.Println(wrong)
		fmt.Println(wrong.Pointer())
	}
	// Output:
	// state established sport = :5432 and heard > 24h
	// parse filter: column 19: unknown predicate "sprot", did you mean "sport"?
	// state established sprot=5432
	//                   ^
}
