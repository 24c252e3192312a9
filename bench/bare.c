/* The least any handler can do: take authority, instantiate, exit; yardstick (c). */
#include <keyutils.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
	key_serial_t key = argc > 2 ? (key_serial_t)atol(argv[2]) : 0;

	if (keyctl_assume_authority(key) < 0)
		return 1;
	return keyctl_instantiate(key, "", 1, 0) < 0;
}
