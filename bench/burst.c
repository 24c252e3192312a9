/*
 * Requests `user` keys as one uid, as the bench wants it: COUNT in all, AT_ONCE at a time.
 *
 * usage: burst UID COUNT AT_ONCE START PREFIX CALLOUT WAIT
 *
 * START is the moment (CLOCK_MONOTONIC, ms; 0: now) at which all begin, so that several of these
 * begin together.  Prints a line for each request: errno, microseconds blocked, microseconds to
 * the key's answer (0: none within WAIT seconds), and the payload's first 4 bytes as a number, which is not 0
 * for a context.  In C, because five hundred Python processes would measure themselves.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <grp.h>
#include <keyutils.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct result {
	int error;
	uint32_t first;
	int64_t blocked, updated;
};

static int64_t now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static void ask(struct result *result, const char *prefix, const char *callout, int number, int wait)
{
	char name[256], payload[9000];
	int64_t start;
	key_serial_t key;
	long length;

	snprintf(name, sizeof(name), "%s%d-%d", prefix, (int)getpid(), number);
	start = now_us();
	key = request_key("user", name, callout, KEY_SPEC_SESSION_KEYRING);
	result->blocked = now_us() - start;
	if (key < 0) {
		result->error = errno;
		return;
	}
	while (now_us() - start < wait * 1000000LL) {
		length = keyctl_read(key, payload, sizeof(payload));
		if (length < 0) {
			result->error = errno;
			break;
		}
		if (length > 1) {
			result->updated = now_us() - start;
			memcpy(&result->first, payload, sizeof(result->first));
			break;
		}
		usleep(500 + (useconds_t)((now_us() - start) / 50));
	}
	/* The quota counts the key until it is gone. */
	keyctl_unlink(key, KEY_SPEC_SESSION_KEYRING);
}

int main(int argc, char **argv)
{
	int count, at_once, wait_seconds, number;
	struct result *results;
	int64_t start;
	uid_t uid;

	if (argc != 8)
		return 2;
	uid = (uid_t)atol(argv[1]);
	count = atoi(argv[2]);
	at_once = atoi(argv[3]);
	start = atoll(argv[4]) * 1000;
	wait_seconds = atoi(argv[7]);
	if (setgroups(0, NULL) || setresgid(uid, uid, uid) || setresuid(uid, uid, uid))
		return 1;
	keyctl_join_session_keyring(NULL);
	results = mmap(NULL, sizeof(*results) * (size_t)count, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (results == MAP_FAILED)
		return 1;
	for (int process = 0; process < at_once; process++) {
		pid_t pid = fork();

		if (pid < 0)
			return 1;
		if (pid)
			continue;
		while (start && now_us() < start)
			usleep((useconds_t)(start - now_us() > 2000 ? 1000 : 100));
		for (number = process; number < count; number += at_once)
			ask(&results[number], argv[5], argv[6], number, wait_seconds);
		_exit(0);
	}
	while (wait(NULL) > 0)
		;
	for (number = 0; number < count; number++)
		printf("%d %lld %lld %u\n", results[number].error, (long long)results[number].blocked,
		       (long long)results[number].updated, results[number].first);
	return 0;
}
