# make demo and make test need Go, and nothing else but what they install
# themselves. Everything else here is for people who work on deadpeer.

GO       ?= go
FUZZTIME ?= 20s
# Tests of real kernels wait more than they compute: three packages at a time.
TESTFLAGS ?= -timeout 8m -p 3
LINT     := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
SYSTEMS  := linux/amd64 linux/arm64 darwin/arm64 windows/amd64 freebsd/amd64 openbsd/amd64
# Without a git that likes this folder the binary goes without its revision.
VCS      := $(shell git rev-parse HEAD >/dev/null 2>&1 && echo auto || echo false)

.DEFAULT_GOAL := help
.PHONY: help demo build test test-kernels test-windows format vet bench bench-databases bench-heartbeat forecast-report lint generate fuzz man clean survey-report

help: ## say what there is to make
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 17

demo: build ## show the main job in throw-away network namespaces
	bin/deadpeer demo

build: ## build bin/deadpeer
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=$(VCS) -o bin/deadpeer ./cmd/deadpeer

test: ## check generated files and format, vet for every OS, build, run all tests with the race detector
	@.ci/packages
	@.ci/generated $(GO)
	@$(MAKE) --no-print-directory format vet build
	@.ci/tests $(GO) $(TESTFLAGS)

test-kernels: ## run what depends on the kernel under those of Debian 12, or KERNELS="...", in QEMU (an hour without KVM)
	test/kernels/run $(KERNELS)

test-windows: ## run what there is for Windows under Wine; make test does so, too
	@.ci/packages
	$(GO) test -count=1 -v ./test/wine

format:
	@out=$$(gofmt -l $$(find . -name '*.go' -not -path './.git/*')) && if [ -n "$$out" ]; then \
		echo "gofmt would change:"; echo "$$out"; exit 1; fi

vet:
	@set -e; for system in $(SYSTEMS); do echo "go vet for $$system"; \
		CGO_ENABLED=0 GOOS=$${system%/*} GOARCH=$${system#*/} $(GO) vet ./...; done

bench: ## measure against ss, a bare dump, package net and tcpdump
	$(GO) run ./test/bench

bench-heartbeat: ## measure package heartbeat against a goroutine and a ticker for each target
	$(GO) run ./test/bench/heartbeat

bench-databases: ## measure how long a phantom locks a row of Firebird, PostgreSQL and MariaDB
	@.ci/packages
	$(GO) test -run '^$$' -bench Release -benchtime 1x -timeout 10m ./test/e2e/databases

forecast-report: ## print when this kernel gives connections up, forecast and measured
	@report=$$(mktemp) && $(GO) test ./forecast -run '^TestAgainstTheKernel$$' -count=1 -report "$$report"; \
		status=$$?; cat "$$report"; rm -f "$$report"; exit $$status

survey-report: ## survey NATs that forget after 20, 47 and 90 s (3 minutes)
	$(GO) test -tags report -run TestReport -v ./internal/survey

lint: ## run golangci-lint at the version this tree is clean under
	$(GO) run $(LINT) run ./...

generate: ## rewrite what is generated: BPF objects, the expected output in test/script
	$(GO) generate ./...

fuzz: ## run every fuzz target for FUZZTIME (20s)
	@.ci/fuzz $(GO) $(FUZZTIME)

man: ## write the man pages to man/
	$(GO) run ./packaging/man man

clean: ## remove what make made
	rm -rf bin man
