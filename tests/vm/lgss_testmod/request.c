// SPDX-License-Identifier: GPL-2.0
/*
 * One request for a key, as a Lustre client makes it.
 *
 * request_key() waits uninterruptibly for the handler, so it runs in a worker
 * with the requestor's credentials: a handler that never ends blocks that worker
 * alone, and the requestor, whose own wait is bounded, goes on.
 */

#include <linux/cred.h>
#include <linux/kernel.h>
#include <linux/keyctl.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/workqueue.h>

#include "testmod.h"

#define MAX_REQUEST	PAGE_SIZE

static unsigned int request_limit_ms = 60000;
module_param(request_limit_ms, uint, 0644);
MODULE_PARM_DESC(request_limit_ms, "how long a requestor waits for request_key()");

static struct workqueue_struct *workers;

static void request_release(struct kref *ref)
{
	struct lgss_request *request = container_of(ref, struct lgss_request, ref);

	if (request->cred)
		put_cred(request->cred);
	lgss_context_put(request->context);
	kfree(request->text);
	kfree(request);
}

void lgss_request_put(struct lgss_request *request)
{
	kref_put(&request->ref, request_release);
}

static bool abandoned(const struct lgss_request *request)
{
	return READ_ONCE(request->abandoned);
}

static bool take_mount_lock(const struct lgss_request *request)
{
	bool locked = false;

	wait_event_idle_timeout(lgss_events,
				(locked = lgss_mount_trylock()) || abandoned(request),
				msecs_to_jiffies(lgss_lock_limit_ms));
	return locked;
}

static void drop(struct key *key, struct lgss_context *context)
{
	if (context->keyring)
		key_unlink(context->keyring, key);
	key_invalidate(key);
}

static void wait_for_update(struct lgss_request *request, struct key *key)
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
		/* Another requestor still waits for it. */
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

static void request_and_bind(struct lgss_request *request, struct lgss_context *fresh)
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
		lgss_mount_unlock();
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
	struct lgss_request *request = container_of(item, struct lgss_request, work);
	const struct cred *saved = override_creds(request->cred);
	struct lgss_context *fresh;

	fresh = lgss_context_new(request->root ? NULL : request->cred->thread_keyring);
	if (fresh)
		request_and_bind(request, fresh);
	else
		request->error = -ENOMEM;
	lgss_context_put(fresh);
	revert_creds(saved);
	/* Pairs with the acquire in finished(): the requestor reads what came of it. */
	smp_store_release(&request->finished, true);
	wake_up_all(&lgss_events);
	lgss_request_put(request);
	/* Unloading the module waits for the end of this function as well. */
	module_put(THIS_MODULE);
}

static bool finished(const struct lgss_request *request)
{
	return smp_load_acquire(&request->finished);
}

/* Make a request from a line of text; nothing is asked for yet. */
struct lgss_request *lgss_request_new(const char __user *buffer, size_t size)
{
	struct lgss_request *request;
	int error;

	if (!size || size >= MAX_REQUEST)
		return ERR_PTR(-EINVAL);
	request = kzalloc(sizeof(*request), GFP_KERNEL);
	if (!request)
		return ERR_PTR(-ENOMEM);
	kref_init(&request->ref);
	INIT_WORK(&request->work, work);
	request->timeout_ms = 30000;
	request->stage = "start";
	request->text = memdup_user_nul(buffer, size);
	if (IS_ERR(request->text)) {
		error = PTR_ERR(request->text);
		request->text = NULL;
		goto fail;
	}
	/* A NUL would end the text early, and silently. */
	error = strlen(request->text) == size ? lgss_parse_request(request) : -EINVAL;
	if (error)
		goto fail;
	return request;
fail:
	lgss_request_put(request);
	return ERR_PTR(error);
}

/*
 * The current process's credentials, but for a user's context with the user keyring
 * in place of the thread keyring: request_key() links the new key there, and the
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

/*
 * Ask for the key on behalf of the current process, and wait for what comes of it.
 * Returns 0 when the request has come to its end, whatever that is. A process that
 * exits cannot be interrupted: its signals are those that end it.
 */
int lgss_request_perform(struct lgss_request *request)
{
	unsigned long limit = msecs_to_jiffies(request_limit_ms) +
			      msecs_to_jiffies(lgss_lock_limit_ms) +
			      msecs_to_jiffies(request->bind_delay_ms) +
			      msecs_to_jiffies(request->timeout_ms);
	const struct cred *cred = requestor_cred(request->root);
	long left;

	if (IS_ERR(cred))
		return PTR_ERR(cred);
	request->cred = cred;
	/* The worker's references to the request and to this module. */
	kref_get(&request->ref);
	__module_get(THIS_MODULE);
	queue_work(workers, &request->work);
	if (current->flags & PF_EXITING)
		left = wait_event_idle_timeout(lgss_events, finished(request), limit);
	else
		left = wait_event_interruptible_timeout(lgss_events, finished(request), limit);
	if (left > 0)
		return 0;
	WRITE_ONCE(request->abandoned, true);
	wake_up_all(&lgss_events);
	/* Not restarted after a signal: it would ask a second time. */
	return left ? -EINTR : -ETIME;
}

/*
 * What came of a request, as README.md says it; the caller frees the text. `abandoned`
 * is what lgss_request_perform() returned; where that is an error the worker may still
 * be at it, and its context is left alone.
 */
char *lgss_request_report(const struct lgss_request *request, int abandoned, size_t *size)
{
	const struct lgss_context *context = abandoned ? NULL : request->context;
	size_t payload_len = context ? context->payload_len : 0;
	size_t room = 512 + strlen(request->description) + 2 * payload_len;
	char *text = kmalloc(room, GFP_KERNEL);
	size_t used;

	if (!text)
		return NULL;
	used = scnprintf(text, room,
			 "description %s\nerror %d\nstage %s\nfound %d\nserial %d\nlock_us %lld\n"
			 "request_us %lld\nbound_us %lld\nupdate_us %lld\nearly_updates %lu\n"
			 "malformed %u\nseq_win %u\ngss_major %u\npayload ",
			 request->description, abandoned ? abandoned : request->error,
			 request->stage, request->found, request->serial,
			 request->lock_us, request->request_us, request->bound_us,
			 request->update_us, request->early_updates,
			 context ? context->malformed : 0, context ? context->seq_win : 0,
			 context ? context->gss_major : 0);
	bin2hex(text + used, context ? context->payload : NULL, payload_len);
	used += 2 * payload_len;
	text[used++] = '\n';
	*size = used;
	return text;
}

int lgss_request_init(void)
{
	/* Unbound and wide: a worker sleeps for as long as its request takes. */
	workers = alloc_workqueue("lgss_testmod", WQ_UNBOUND, WQ_UNBOUND_MAX_ACTIVE);
	return workers ? 0 : -ENOMEM;
}

void lgss_request_exit(void)
{
	destroy_workqueue(workers);
}
