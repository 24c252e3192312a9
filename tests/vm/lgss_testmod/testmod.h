/* SPDX-License-Identifier: GPL-2.0 */
/*
 * lgss_testmod: the kernel side of Lustre's GSS interface, for tests.
 *
 * Written from docs/protocol.md (sections 1, 2, 6, 7 and 10), which
 * describes what user space sees; nothing here comes from Lustre's source.
 * README.md beside this file is the interface to user space.
 */
#ifndef LGSS_TESTMOD_H
#define LGSS_TESTMOD_H

#include <linux/cred.h>
#include <linux/key.h>
#include <linux/key-type.h>
#include <linux/kobject.h>
#include <linux/kref.h>
#include <linux/ktime.h>
#include <linux/types.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#define LGSS_MAX_OBD_NAME	64	/* with its NUL */
#define LGSS_MAX_TOKEN		(64 * 1024)

/*
 * Every waiter of this module sleeps here and looks at its own condition. One
 * queue for all costs a few needless wake-ups, and makes it impossible to wake
 * the wrong one.
 */
extern wait_queue_head_t lgss_events;

/* ---- keytype.c: the key type, and the context that a key is bound to ---- */

enum lgss_state {
	LGSS_PENDING,		/* bound, no update yet */
	LGSS_ESTABLISHED,	/* a success payload came */
	LGSS_FAILED,		/* a failure payload came */
	LGSS_DEAD,		/* nobody waits any more: time-out, revocation, destruction */
};

/* What stands for ptlrpc's client context: it outlives the key. */
struct lgss_context {
	struct kref ref;
	/* The keyring that a failure takes the key out of; NULL for root's. */
	struct key *keyring;
	/* Below: written under the key's semaphore, before the state is released. */
	enum lgss_state state;
	int error;
	unsigned int waiters;
	u32 seq_win;
	u32 gss_major;
	unsigned int malformed;
	ktime_t updated;
	size_t payload_len;
	u8 *payload;
};

extern struct key_type lgss_key_type;

struct lgss_context *lgss_context_new(struct key *keyring);
void lgss_context_put(struct lgss_context *context);
enum lgss_state lgss_context_state(const struct lgss_context *context);
struct lgss_context *lgss_bind(struct key *key, struct lgss_context *fresh,
			       unsigned long *early_updates);
enum lgss_state lgss_leave(struct key *key, struct lgss_context *context, int error);

/* ---- mount_lock.c: the lock of a mount ---- */

extern unsigned int lgss_lock_limit_ms;

bool lgss_mount_trylock(void);
void lgss_mount_unlock(void);
int lgss_mount_lock_wait(void);

/* ---- request.c, request_line.c: one request for a key ---- */

enum lgss_when {
	LGSS_NOW,
	LGSS_AT_CLOSE,		/* by the process that closes the file, as it exits */
	LGSS_IN_CHANNEL,	/* by the next process that writes to init_channel */
};

struct lgss_request {
	struct kref ref;
	struct work_struct work;
	const struct cred *cred;
	bool abandoned;
	bool finished;

	/* what the requestor asked for */
	enum lgss_when when;
	bool root;
	bool hold;
	unsigned int timeout_ms;
	unsigned int bind_delay_ms;
	char *description;
	char *callout;
	char *text;		/* holds the two strings above */

	/* what came of it; the requestor reads it once it has finished */
	const char *stage;
	int error;
	bool found;
	key_serial_t serial;
	unsigned long early_updates;
	ktime_t start;		/* of request_key(); the times below count from here */
	s64 lock_us;
	s64 request_us;
	s64 bound_us;
	s64 update_us;
	struct lgss_context *context;
};

int lgss_request_init(void);
void lgss_request_exit(void);
int lgss_parse_request(struct lgss_request *request);
struct lgss_request *lgss_request_new(const char __user *buffer, size_t size);
void lgss_request_put(struct lgss_request *request);
int lgss_request_perform(struct lgss_request *request);
char *lgss_request_report(const struct lgss_request *request, int abandoned, size_t *size);

/* ---- trigger.c: /dev/lgss_trigger ---- */

int lgss_trigger_init(void);
void lgss_trigger_exit(void);
int lgss_perform_in_channel(s64 *status);

/* ---- reports.c: /dev/lgss_reports ---- */

int lgss_reports_init(void);
void lgss_reports_exit(void);
void lgss_report_later(struct lgss_request *request, int error);

/* ---- channel.c: init_channel and /dev/lgss_acceptor ---- */

int lgss_channel_init(void);
void lgss_channel_exit(void);
ssize_t lgss_channel_write(const char *record, size_t size);

#endif
