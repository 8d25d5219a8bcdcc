// usage: reuse ROUNDS PID RIGHT WRONG SLOT
//
// Starts a process ROUNDS times, with the same PID every time, which has one
// of the descriptors RIGHT and WRONG under the number SLOT, in turn, for some
// 20 us. It needs a pid namespace of its own: there it says which pid is the
// next. Prints how often the process had that pid; if something else came by
// it meanwhile, that is the end.
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static int from, slot;
static volatile int spin;

static int live(void *unused)
{
	(void)unused;
	dup2(from, slot);
	for (int i = 0; i < 20000; i++)
		spin = i;
	_exit(0);
}

int main(int argc, char **argv)
{
	static char stack[65536] __attribute__((aligned(16)));
	char last[16];
	int next = open("/proc/sys/kernel/ns_last_pid", O_WRONLY);

	if (argc != 6 || next < 0)
		return 1;
	int rounds = atoi(argv[1]), pid = atoi(argv[2]), hits = 0;

	slot = atoi(argv[5]);
	int length = sprintf(last, "%d", pid - 1);
	for (int n = 0; n < rounds; n++) {
		from = atoi(argv[3 + n % 2]);
		if (pwrite(next, last, length, 0) != length)
			return 1;
		// As vfork(2) does, but for the copy of the descriptors it has, too.
		int child = clone(live, stack + sizeof(stack), CLONE_VM | CLONE_VFORK | SIGCHLD, NULL);
		if (child < 0 || waitpid(child, NULL, 0) != child)
			return 1;
		if (child != pid)
			break;
		hits++;
	}
	printf("%d\n", hits);
	return 0;
}
