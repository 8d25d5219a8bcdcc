package script

import (
	"net"
	"net/http"
	"time"

	"github.com/vishvananda/netlink"

	"deadpeer/internal/zeotest"
)

// serving runs deadpeer beside servers whose applications answer pings.
func serving(args []string) int {
	check(netlink.LinkSetUp(must(netlink.LinkByName("lo"))))
	zeo := zeotest.Serve(must(net.Listen("tcp4", "127.0.0.1:8100")), true)
	defer zeo.Close()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /good", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /bad", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	web := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	listener := must(net.Listen("tcp4", "127.0.0.1:8080"))
	go func() { _ = web.Serve(listener) }() // until Close
	defer func() { _ = web.Close() }()
	return deadpeer(args)
}
