package bpf

// The objects are built by Debian 12's clang 14 and committed; .ci/generated
// compares them with what the sources give.
//
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -cflags "-Wall -Werror -mcpu=v2" -tags linux -target bpfel,bpfeb -type connection -type descriptor sockets c/sockets.c
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -cflags "-Wall -Werror -mcpu=v2" -tags linux -target bpfel,bpfeb policy c/policy.c
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -cflags "-Wall -Werror -mcpu=v2" -tags linux -target bpfel,bpfeb hook c/hook.c
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -cflags "-Wall -Werror -mcpu=v2" -tags linux -target bpfel,bpfeb -type made own c/own.c
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -cflags "-Wall -Werror -mcpu=v2" -tags linux -target bpfel,bpfeb end c/end.c
