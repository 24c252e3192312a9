// SPDX-License-Identifier: GPL-2.0
/* The key type `lgssc`. */

#include <linux/cred.h>
#include <linux/delay.h>
#include <linux/moduleparam.h>
#include <linux/rcupdate.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "testmod.h"

static unsigned int import_fails;
module_param(import_fails, uint, 0644);
MODULE_PARM_DESC(import_fails, "1: a success update is answered with 0, but its context fails");

/*
 * The key's payload words: [0] the context once it is bound, [1] how many
 * updates came before. Both change under the key's semaphore only.
 */
#define BOUND(key)	((key)->payload.data[0])
#define EARLY(key)	((key)->payload.data[1])

static struct lgss_context *bound_context(const struct key *key)
{
	/* Pairs with the release in lgss_bind(): describe takes no semaphore. */
	return smp_load_acquire(&BOUND(key));
}

struct lgss_context *lgss_context_new(struct key *keyring)
{
	struct lgss_context *context = kzalloc(sizeof(*context), GFP_KERNEL);

	if (!context)
		return NULL;
	kref_init(&context->ref);
	context->keyring = key_get(keyring);
	return context;
}

static void context_release(struct kref *ref)
{
	struct lgss_context *context = container_of(ref, struct lgss_context, ref);

	key_put(context->keyring);
	/* A context's payload holds session keys, if only a test's. */
	kfree_sensitive(context->payload);
	kfree(context);
}

void lgss_context_put(struct lgss_context *context)
{
	if (context)
		kref_put(&context->ref, context_release);
}

enum lgss_state lgss_context_state(const struct lgss_context *context)
{
	return smp_load_acquire(&context->state);
}

static void set_state(struct lgss_context *context, enum lgss_state state)
{
	context->updated = ktime_get();
	smp_store_release(&context->state, state);
	wake_up_all(&lgss_events);
}

/*
 * Bind a context to a key that request_key() has returned. Returns the key's
 * context with a reference for the caller: the fresh one, or the one that an
 * earlier trigger left there, as a user's second request finds it. The caller is one
 * of its waiters until lgss_leave().
 */
struct lgss_context *lgss_bind(struct key *key, struct lgss_context *fresh,
			       unsigned long *early_updates)
{
	struct lgss_context *context;
	int error;

	down_write(&key->sem);
	*early_updates = (unsigned long)EARLY(key);
	context = BOUND(key);
	error = key_validate(key);
	if (!context && error) {
		up_write(&key->sem);
		return ERR_PTR(error);
	}
	if (!context) {
		context = fresh;
		kref_get(&context->ref);	/* the key's */
		smp_store_release(&BOUND(key), context);
	}
	kref_get(&context->ref);		/* the caller's */
	context->waiters++;
	up_write(&key->sem);
	return context;
}

/*
 * One waiter leaves. With the last of them a context that is still pending dies,
 * and later updates are refused: two processes of a user may wait for one key, and
 * one that is killed must not take it from the other.
 */
enum lgss_state lgss_leave(struct key *key, struct lgss_context *context, int error)
{
	enum lgss_state state;

	down_write(&key->sem);
	context->waiters--;
	if (!context->waiters && context->state == LGSS_PENDING) {
		context->error = error;
		set_state(context, LGSS_DEAD);
	}
	state = context->state;
	up_write(&key->sem);
	return state;
}

/*
 * Find out whether this process itself holds a keyring's semaphore, as it does
 * when the destination named to keyctl_instantiate() is its own session keyring.
 * Lustre's type would wait for ever then. Another holder lets go within
 * moments, so what stays locked for half a second is ours.
 */
static bool held_by_us(struct key *keyring)
{
	int tries;

	for (tries = 0; tries < 50; tries++) {
		if (down_write_trylock(&keyring->sem)) {
			up_write(&keyring->sem);
			return false;
		}
		if (msleep_interruptible(10))
			return true;
	}
	return true;
}

static int link_into_session(struct key *key)
{
	struct key *session;
	int error;

	rcu_read_lock();
	session = key_get(rcu_dereference(current_cred()->session_keyring));
	rcu_read_unlock();
	if (!session)
		return 0;
	error = held_by_us(session) ? -EDEADLK : key_link(session, key);
	key_put(session);
	return error;
}

static int lgss_instantiate(struct key *key, struct key_preparsed_payload *prep)
{
	if (prep->data || prep->datalen)
		return -EINVAL;
	if (!uid_eq(current_uid(), GLOBAL_ROOT_UID))
		return 0;
	return link_into_session(key);
}

/* A cursor over a payload: every take either fits or fails, nothing wraps. */
struct cursor {
	const u8 *at;
	size_t left;
};

static bool take_u32(struct cursor *cursor, u32 *value)
{
	if (cursor->left < sizeof(*value))
		return false;
	memcpy(value, cursor->at, sizeof(*value));
	cursor->at += sizeof(*value);
	cursor->left -= sizeof(*value);
	return true;
}

static bool take_bytes(struct cursor *cursor)
{
	u32 size;

	/* An empty handle names no context and an empty context is none. */
	if (!take_u32(cursor, &size) || !size || size > cursor->left)
		return false;
	cursor->at += size;
	cursor->left -= size;
	return true;
}

static int parse_update(const void *data, size_t size, u32 *seq_win, int *error,
			u32 *gss_major)
{
	struct cursor cursor = { .at = data, .left = size };
	u32 rpc_error;

	*error = 0;
	*gss_major = 0;
	if (!take_u32(&cursor, seq_win))
		return -EINVAL;
	if (*seq_win) {
		if (!take_bytes(&cursor) || !take_bytes(&cursor))
			return -EINVAL;
	} else {
		if (!take_u32(&cursor, &rpc_error) || !take_u32(&cursor, gss_major))
			return -EINVAL;
		*error = (int)rpc_error;
		if (*error >= 0 || *error < -MAX_ERRNO)
			return -EINVAL;
	}
	return cursor.left ? -EINVAL : 0;
}

static int lgss_update(struct key *key, struct key_preparsed_payload *prep)
{
	struct lgss_context *context = BOUND(key);
	u32 seq_win, gss_major;
	int error;
	u8 *copy;

	if (!context) {
		EARLY(key) = (void *)((unsigned long)EARLY(key) + 1);
		return -EAGAIN;
	}
	if (context->state != LGSS_PENDING)
		return -EKEYEXPIRED;
	if (!prep->data ||
	    parse_update(prep->data, prep->datalen, &seq_win, &error, &gss_major)) {
		context->malformed++;
		return -EINVAL;
	}
	/* Lustre's answer to the update does not tell this from a success. */
	if (!error && import_fails)
		error = -EPERM;
	copy = kmemdup(prep->data, prep->datalen, GFP_KERNEL);
	if (!copy)
		return -ENOMEM;
	context->payload = copy;
	context->payload_len = prep->datalen;
	context->seq_win = seq_win;
	context->gss_major = gss_major;
	context->error = error;
	/*
	 * Before any waiter is woken: a requestor that was waiting may ask again at once,
	 * and unlinking goes by description, so it would hit the new key.
	 */
	if (error && context->keyring)
		key_unlink(context->keyring, key);
	set_state(context, error ? LGSS_FAILED : LGSS_ESTABLISHED);
	return 0;
}

static void lgss_revoke(struct key *key)
{
	struct lgss_context *context = BOUND(key);

	/* The caller holds the key's semaphore. */
	if (context && context->state == LGSS_PENDING) {
		context->error = -EKEYREVOKED;
		set_state(context, LGSS_DEAD);
	}
}

static void lgss_destroy(struct key *key)
{
	/* No other reference to the key is left, so no semaphore is needed. */
	struct lgss_context *context = BOUND(key);

	if (context && context->state == LGSS_PENDING) {
		context->error = -ENOKEY;
		set_state(context, LGSS_DEAD);
	}
	lgss_context_put(context);
}

static void lgss_describe(const struct key *key, struct seq_file *file)
{
	static const char * const words[] = {
		[LGSS_PENDING] = "pending",
		[LGSS_ESTABLISHED] = "established",
		[LGSS_FAILED] = "failed",
		[LGSS_DEAD] = "dead",
	};
	struct lgss_context *context;

	seq_puts(file, key->description);
	if (!key_is_positive(key))
		return;
	context = bound_context(key);
	seq_printf(file, ": %s", context ? words[lgss_context_state(context)] : "unbound");
}

/*
 * No read: what a context holds never goes back to user space. Having update but
 * not read is also what makes the kernel give new keys the permissions 3d010000.
 */
struct key_type lgss_key_type = {
	.name = "lgssc",
	.instantiate = lgss_instantiate,
	.update = lgss_update,
	.revoke = lgss_revoke,
	.destroy = lgss_destroy,
	.describe = lgss_describe,
};
