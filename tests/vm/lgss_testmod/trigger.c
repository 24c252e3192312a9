// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/lgss_trigger: make the kernel request a key as a Lustre client does.
 *
 * request_key() waits uninterruptibly for the handler, so it runs in a worker
 * with the caller's credentials: a handler that never ends blocks that worker
 * alone, and the caller, who waits interruptibly and bounded, goes on.
 */

#include <linux/completion.h>
#include <linux/cred.h>
#include <linux/fs.h>
#include <linux/keyctl.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/mutex.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/workqueue.h>

#include "testmod.h"

#define MAX_REQUEST	PAGE_SIZE
#define MAX_WAIT_MS	300000

static unsigned int request_limit_ms = 60000;
module_param(request_limit_ms, uint, 0644);
MODULE_PARM_DESC(request_limit_ms, "how long a trigger's caller waits for request_key()");

static unsigned int lock_limit_ms = 15000;
module_param(lock_limit_ms, uint, 0644);
MODULE_PARM_DESC(lock_limit_ms, "how long anybody waits for the lock of a mount");

static struct workqueue_struct *workers;

/*
 * The lock of a mount. Not a mutex: a wait for one cannot be both interruptible
 * and bounded.
 */
static atomic_t mount_locked = ATOMIC_INIT(0);

static bool mount_trylock(void)
{
	return atomic_cmpxchg(&mount_locked, 0, 1) == 0;
}

static void mount_unlock(void)
{
	atomic_set(&mount_locked, 0);
	wake_up_all(&lgss_events);
}

/* What init_channel does first. A real client would wait for ever. */
int lgss_mount_lock_wait(void)
{
	long left = wait_event_interruptible_timeout(lgss_events, mount_trylock(),
						     msecs_to_jiffies(lock_limit_ms));

	if (left < 0)
		return -EINTR;
	if (!left)
		return -EDEADLK;
	mount_unlock();
	return 0;
}

struct request {
	struct kref ref;
	struct work_struct work;
	struct completion done;
	const struct cred *cred;
	bool abandoned;

	/* what the caller asked for */
	bool root;
	bool hold;
	unsigned int timeout_ms;
	unsigned int bind_delay_ms;
	char *description;
	char *callout;
	char *text;		/* holds the two strings above */

	/* what came of it; the caller reads it after `done` */
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

static void request_release(struct kref *ref)
{
	struct request *request = container_of(ref, struct request, ref);

	if (request->cred)
		put_cred(request->cred);
	lgss_context_put(request->context);
	kfree(request->text);
	kfree(request);
}

static void request_put(struct request *request)
{
	kref_put(&request->ref, request_release);
}

static bool abandoned(const struct request *request)
{
	return READ_ONCE(request->abandoned);
}

static bool take_mount_lock(const struct request *request)
{
	bool locked = false;

	wait_event_idle_timeout(lgss_events,
				(locked = mount_trylock()) || abandoned(request),
				msecs_to_jiffies(lock_limit_ms));
	return locked;
}

static void drop(struct key *key, struct lgss_context *context)
{
	if (context->keyring)
		key_unlink(context->keyring, key);
	key_invalidate(key);
}

static void wait_for_update(struct request *request, struct key *key)
{
	struct lgss_context *context = request->context;
	int reason;

	wait_event_idle_timeout(lgss_events,
				lgss_context_state(context) != LGSS_PENDING ||
				abandoned(request),
				msecs_to_jiffies(request->timeout_ms));
	reason = abandoned(request) ? -EINTR : -ETIMEDOUT;
	switch (lgss_leave(key, context, reason)) {
	case LGSS_PENDING:
		/* Somebody else waits on. */
		request->error = reason;
		return;
	case LGSS_ESTABLISHED:
	case LGSS_FAILED:
		/*
		 * The kernel keeps the context of a root key, not the key. A user's
		 * key stays, or was taken out of its keyring by the failure.
		 */
		if (request->root)
			drop(key, context);
		break;
	case LGSS_DEAD:
		drop(key, context);
		break;
	}
	request->error = context->error;
	request->update_us = ktime_us_delta(context->updated, request->start);
}

static void request_and_bind(struct request *request, struct lgss_context *fresh)
{
	struct lgss_context *context;
	struct key *key;
	ktime_t start;

	start = ktime_get();
	request->stage = "lock";
	if (request->hold && !take_mount_lock(request)) {
		request->error = abandoned(request) ? -EINTR : -EDEADLK;
		return;
	}
	request->lock_us = ktime_us_delta(ktime_get(), start);

	request->start = ktime_get();
	request->stage = "request_key";
	key = request_key(&lgss_key_type, request->description, request->callout);
	request->request_us = ktime_us_delta(ktime_get(), request->start);
	if (request->hold)
		mount_unlock();
	if (IS_ERR(key)) {
		request->error = PTR_ERR(key);
		return;
	}
	request->serial = key_serial(key);

	request->stage = "bind";
	if (request->bind_delay_ms)
		wait_event_idle_timeout(lgss_events, abandoned(request),
					msecs_to_jiffies(request->bind_delay_ms));
	context = lgss_bind(key, fresh, &request->early_updates);
	if (IS_ERR(context)) {
		request->error = PTR_ERR(context);
		key_put(key);
		return;
	}
	request->context = context;
	request->found = context != fresh;
	request->bound_us = ktime_us_delta(ktime_get(), request->start);

	request->stage = "update";
	wait_for_update(request, key);
	key_put(key);
}

static void work(struct work_struct *item)
{
	struct request *request = container_of(item, struct request, work);
	const struct cred *saved = override_creds(request->cred);
	struct lgss_context *fresh;

	fresh = lgss_context_new(request->root ? NULL : request->cred->thread_keyring);
	if (fresh)
		request_and_bind(request, fresh);
	else
		request->error = -ENOMEM;
	lgss_context_put(fresh);
	revert_creds(saved);
	complete_all(&request->done);
	request_put(request);
	/* Whoever unloads the module waits for the end of this function as well. */
	module_put(THIS_MODULE);
}

/*
 * The caller's credentials, but for a user's context with the user keyring in
 * place of the thread keyring: request_key() links the new key there, and the
 * handler sees it as %T, as on a Lustre client.
 */
static const struct cred *requestor_cred(bool root)
{
	struct cred *cred = prepare_creds();
	key_ref_t ref;

	if (!cred)
		return ERR_PTR(-ENOMEM);
	if (root)
		return cred;
	ref = lookup_user_key(KEY_SPEC_USER_KEYRING, KEY_LOOKUP_CREATE, KEY_NEED_LINK);
	if (IS_ERR(ref)) {
		abort_creds(cred);
		return ERR_CAST(ref);
	}
	key_put(cred->thread_keyring);
	cred->thread_keyring = key_ref_to_ptr(ref);
	return cred;
}

static int parse_number(const char *text, unsigned int limit, unsigned int *value)
{
	int error = kstrtouint(text, 10, value);

	if (error)
		return error;
	return *value > limit ? -ERANGE : 0;
}

static int parse_field(struct request *request, const char *name, char *value)
{
	unsigned int number;
	int error;

	if (!strcmp(name, "description")) {
		request->description = value;
		return *value ? 0 : -EINVAL;
	}
	if (!strcmp(name, "timeout_ms"))
		return parse_number(value, MAX_WAIT_MS, &request->timeout_ms);
	if (!strcmp(name, "bind_delay_ms"))
		return parse_number(value, MAX_WAIT_MS, &request->bind_delay_ms);
	error = parse_number(value, 1, &number);
	if (error)
		return error;
	if (!strcmp(name, "root"))
		request->root = number;
	else if (!strcmp(name, "hold"))
		request->hold = number;
	else
		return -EINVAL;
	return 0;
}

/*
 * One line of `name=value`, with a space between them. The callout comes last and
 * takes the rest, spaces and all: a hostile one may hold anything but NUL.
 */
static int parse_request(struct request *request)
{
	char *rest = request->text;
	size_t size = strlen(rest);
	int error;

	if (size && rest[size - 1] == '\n')
		rest[size - 1] = 0;
	while (rest) {
		char *name, *value;

		if (!strncmp(rest, "callout=", 8)) {
			request->callout = rest + 8;
			break;
		}
		value = strsep(&rest, " ");
		name = strsep(&value, "=");
		if (!value)
			return -EINVAL;
		error = parse_field(request, name, value);
		if (error)
			return error;
	}
	return request->description && request->callout ? 0 : -EINVAL;
}

static struct request *request_new(const char __user *buffer, size_t size)
{
	struct request *request;
	int error;

	if (!size || size >= MAX_REQUEST)
		return ERR_PTR(-EINVAL);
	request = kzalloc(sizeof(*request), GFP_KERNEL);
	if (!request)
		return ERR_PTR(-ENOMEM);
	kref_init(&request->ref);
	INIT_WORK(&request->work, work);
	init_completion(&request->done);
	request->timeout_ms = 30000;
	request->stage = "start";
	request->text = memdup_user_nul(buffer, size);
	if (IS_ERR(request->text)) {
		error = PTR_ERR(request->text);
		request->text = NULL;
		goto fail;
	}
	/* A NUL would end the text early, and silently. */
	error = strlen(request->text) == size ? parse_request(request) : -EINVAL;
	if (error)
		goto fail;
	request->cred = requestor_cred(request->root);
	if (IS_ERR(request->cred)) {
		error = PTR_ERR(request->cred);
		request->cred = NULL;
		goto fail;
	}
	return request;
fail:
	request_put(request);
	return ERR_PTR(error);
}

/* One open file: a request is written, its outcome is read. */
struct session {
	struct mutex lock;
	char *report;
	size_t report_len;
};

static int session_open(struct inode *inode, struct file *file)
{
	struct session *session = kzalloc(sizeof(*session), GFP_KERNEL);

	if (!session)
		return -ENOMEM;
	mutex_init(&session->lock);
	file->private_data = session;
	return 0;
}

static int session_release(struct inode *inode, struct file *file)
{
	struct session *session = file->private_data;

	kfree_sensitive(session->report);
	kfree(session);
	return 0;
}

static int write_report(struct session *session, const struct request *request)
{
	const struct lgss_context *context = request->context;
	size_t payload_len = context ? context->payload_len : 0;
	size_t room = 512 + 2 * payload_len;
	char *text = kmalloc(room, GFP_KERNEL);
	size_t used;

	if (!text)
		return -ENOMEM;
	used = scnprintf(text, room,
			 "error %d\nstage %s\nfound %d\nserial %d\nlock_us %lld\n"
			 "request_us %lld\nbound_us %lld\nupdate_us %lld\nearly_updates %lu\n"
			 "malformed %u\nseq_win %u\ngss_major %u\npayload ",
			 request->error, request->stage, request->found, request->serial,
			 request->lock_us, request->request_us, request->bound_us,
			 request->update_us, request->early_updates,
			 context ? context->malformed : 0, context ? context->seq_win : 0,
			 context ? context->gss_major : 0);
	bin2hex(text + used, context ? context->payload : NULL, payload_len);
	used += 2 * payload_len;
	text[used++] = '\n';
	session->report = text;
	session->report_len = used;
	return 0;
}

static ssize_t perform(struct session *session, struct request *request)
{
	unsigned long limit = msecs_to_jiffies(request_limit_ms) +
			      msecs_to_jiffies(lock_limit_ms) +
			      msecs_to_jiffies(request->bind_delay_ms) +
			      msecs_to_jiffies(request->timeout_ms);
	long left;

	/* The worker's references to the request and to this module. */
	kref_get(&request->ref);
	__module_get(THIS_MODULE);
	queue_work(workers, &request->work);
	left = wait_for_completion_interruptible_timeout(&request->done, limit);
	if (left > 0)
		return write_report(session, request);
	WRITE_ONCE(request->abandoned, true);
	wake_up_all(&lgss_events);
	/* Not restarted after a signal: it would ask a second time. */
	return left ? -EINTR : -ETIME;
}

static ssize_t session_write(struct file *file, const char __user *buffer, size_t size,
			     loff_t *position)
{
	struct session *session = file->private_data;
	struct request *request;
	ssize_t error;

	if (mutex_lock_interruptible(&session->lock))
		return -EINTR;
	kfree_sensitive(session->report);
	session->report = NULL;
	session->report_len = 0;
	request = request_new(buffer, size);
	if (IS_ERR(request)) {
		error = PTR_ERR(request);
	} else {
		error = perform(session, request);
		request_put(request);
	}
	/* What is read next is the whole of the new report. */
	*position = 0;
	mutex_unlock(&session->lock);
	return error ? error : size;
}

static ssize_t session_read(struct file *file, char __user *buffer, size_t size,
			    loff_t *position)
{
	struct session *session = file->private_data;
	ssize_t count;

	if (mutex_lock_interruptible(&session->lock))
		return -EINTR;
	count = simple_read_from_buffer(buffer, size, position, session->report,
					session->report_len);
	mutex_unlock(&session->lock);
	return count;
}

static const struct file_operations session_fops = {
	.owner = THIS_MODULE,
	.open = session_open,
	.release = session_release,
	.write = session_write,
	.read = session_read,
	.llseek = no_llseek,
};

/* For everybody, as request_key(2) is: the requestor is whoever writes. */
static struct miscdevice session_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "lgss_trigger",
	.fops = &session_fops,
	.mode = 0666,
};

int lgss_trigger_init(void)
{
	int error;

	/* Unbound and wide: a worker sleeps for as long as its request takes. */
	workers = alloc_workqueue("lgss_testmod", WQ_UNBOUND, WQ_UNBOUND_MAX_ACTIVE);
	if (!workers)
		return -ENOMEM;
	error = misc_register(&session_device);
	if (error)
		destroy_workqueue(workers);
	return error;
}

void lgss_trigger_exit(void)
{
	misc_deregister(&session_device);
	destroy_workqueue(workers);
}
