package beat

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"deadpeer/internal/holder"
)

// grpcTarget pings by the health service (grpc.health.v1.Health), of which it
// speaks no more than that one call: package heartbeat/grpc is for programs
// that have a gRPC client anyway.
type grpcTarget struct {
	url       url.URL
	request   []byte
	transport *http.Transport
	held      holder.Of[*http.ClientConn]
}

// openGRPC takes grpc://HOST:PORT[/SERVICE], and grpcs:// for TLS.
func openGRPC(u *url.URL) (Target, func() error, error) {
	if u.Port() == "" {
		return nil, nil, fmt.Errorf("no port; want %s://HOST:PORT", u.Scheme)
	}
	service := strings.TrimPrefix(u.Path, "/")
	if len(service) > mostMessage {
		return nil, nil, errors.New("the service has too long a name")
	}
	t := &grpcTarget{
		url:     url.URL{Scheme: "http", Host: u.Host, Path: "/grpc.health.v1.Health/Check"},
		request: healthRequest(service),
		transport: &http.Transport{
			Protocols: new(http.Protocols), MaxResponseHeaderBytes: 64 << 10,
			HTTP2: &http.HTTP2Config{WriteByteTimeout: 10 * time.Second},
		},
	}
	if u.Scheme == "grpcs" {
		t.url.Scheme, t.transport.TLSClientConfig = "https", &tls.Config{}
		t.transport.Protocols.SetHTTP2(true)
	} else {
		t.transport.Protocols.SetUnencryptedHTTP2(true)
	}
	return t, t.held.Close, nil
}

// brokenError is that of a connection.
type brokenError struct{ error }

// Ping asks for the health of the service. A server without the health service
// answers that it has none, which is an answer.
func (t *grpcTarget) Ping(ctx context.Context) error {
	var serving bool
	held, err := t.held.Ask(ctx, t.Reconnect, func(c *http.ClientConn) (broken bool, err error) {
		serving, err = t.check(ctx, c)
		_, broken = errors.AsType[brokenError](err)
		return broken, err
	})
	switch {
	case !held:
		return errNotConnected
	case err != nil && ctx.Err() != nil:
		return fmt.Errorf("check health: %w", ctx.Err())
	case err != nil:
		return fmt.Errorf("check health: %w", err)
	case !serving:
		return errors.New("check health: the service is not serving")
	}
	return nil
}

// Reconnect connects.
func (t *grpcTarget) Reconnect(ctx context.Context) error {
	return t.held.Replace(ctx, func(ctx context.Context) (*http.ClientConn, error) {
		return t.transport.NewClientConn(ctx, t.url.Scheme, t.url.Host)
	})
}

// The gRPC statuses that are told apart (grpc.github.io/grpc/core/md_doc_statuscodes.html).
const (
	grpcOK            = "0"
	grpcNotFound      = "5"
	grpcUnimplemented = "12"
)

// check makes the call, as "gRPC over HTTP2" in grpc/grpc/doc describes it.
func (t *grpcTarget) check(ctx context.Context, c *http.ClientConn) (serving bool, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, t.url.String(), bytes.NewReader(t.request))
	if err != nil {
		return false, err
	}
	request.Header.Set("Content-Type", "application/grpc+proto")
	request.Header.Set("Te", "trailers")
	request.Header.Set("User-Agent", "deadpeer-heartbeat")
	response, err := c.RoundTrip(request)
	if err != nil {
		return false, brokenError{err}
	}
	defer func() { _ = response.Body.Close() }()
	if kind := response.Header.Get("Content-Type"); response.StatusCode != http.StatusOK || !strings.HasPrefix(kind, "application/grpc") {
		return false, fmt.Errorf("answered with status %d and content of type %q, which is not gRPC's", response.StatusCode, kind)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, mostMessage+1))
	if err != nil {
		return false, brokenError{err}
	}
	if len(body) > mostMessage {
		return false, fmt.Errorf("answer is longer than %d bytes", mostMessage)
	}
	// An answer without a body has its status among the headers.
	trailer := response.Trailer
	if trailer.Get("Grpc-Status") == "" {
		trailer = response.Header
	}
	switch status := trailer.Get("Grpc-Status"); status {
	case grpcOK:
		return healthAnswer(body)
	case grpcUnimplemented:
		return true, nil
	case grpcNotFound:
		return false, errors.New("the server knows no such service")
	default:
		message, err := url.PathUnescape(trailer.Get("Grpc-Message")) // percent-encoded
		if err != nil {
			message = trailer.Get("Grpc-Message")
		}
		return false, fmt.Errorf("answered with gRPC status %q: %q", status, message)
	}
}

// mostMessage bounds messages in either direction.
const mostMessage = 4096

// healthRequest is a HealthCheckRequest, whose field 1 is the service, with
// gRPC's five bytes in front: not compressed, and the length.
func healthRequest(service string) []byte {
	var message []byte
	if service != "" {
		message = binary.AppendUvarint([]byte{1<<3 | 2}, uint64(len(service)))
		message = append(message, service...)
	}
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)
}

// healthAnswer reads a HealthCheckResponse, whose field 1 is the status: 1 for
// serving (protobuf.dev/programming-guides/encoding).
func healthAnswer(body []byte) (serving bool, err error) {
	bad := errors.New("answer is no HealthCheckResponse")
	if len(body) < 5 || body[0] != 0 || uint64(binary.BigEndian.Uint32(body[1:])) != uint64(len(body)-5) {
		return false, bad
	}
	for rest := body[5:]; len(rest) > 0; {
		key, n := binary.Uvarint(rest)
		if n <= 0 {
			return false, bad
		}
		rest = rest[n:]
		var size uint64
		switch key & 7 {
		case 0:
			value, n := binary.Uvarint(rest)
			if n <= 0 {
				return false, bad
			}
			if size = uint64(n); key>>3 == 1 {
				serving = value == 1
			}
		case 1:
			size = 8
		case 2:
			length, n := binary.Uvarint(rest)
			if n <= 0 || length > mostMessage {
				return false, bad
			}
			size = uint64(n) + length
		case 5:
			size = 4
		default:
			return false, bad
		}
		if size > uint64(len(rest)) {
			return false, bad
		}
		rest = rest[size:]
	}
	return serving, nil
}
