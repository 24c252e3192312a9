/*
 * Moves itself into a cgroup and becomes another program, so that the bench counts what an upcall uses.
 *
 * Compiled with the path of cgroup.procs (-DPROCS) and that of the program (-DPROGRAM).  A shell
 * script in its place would use more than some of what is measured.
 */
#include <fcntl.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int file = open(PROCS, O_WRONLY);

	(void)argc;
	if (file < 0 || write(file, "0", 1) != 1)
		return 1;
	close(file);
	argv[0] = PROGRAM;
	execv(PROGRAM, argv);
	return 1;
}
