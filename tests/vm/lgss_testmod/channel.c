// SPDX-License-Identifier: GPL-2.0
/*
 * init_channel: a token goes to a user-space acceptor and its answer comes back,
 * in one write by the initiator. The acceptor's end is /dev/lgss_acceptor.
 */

#include <linux/fs.h>
#include <linux/list.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/uaccess.h>

#include "testmod.h"

static unsigned int answer_limit_ms = 15000;
module_param(answer_limit_ms, uint, 0644);
MODULE_PARM_DESC(answer_limit_ms, "how long a write to init_channel waits for the acceptor");

static unsigned int unmounted;
module_param(unmounted, uint, 0644);
MODULE_PARM_DESC(unmounted, "1: a write to init_channel finds its target being unmounted");

/*
 * What is written to init_channel (docs/protocol.md 6). The addresses are the writing
 * process's. The compiler's own padding is the interface: it is a C structure.
 */
struct channel_record {
	__u32 version;
	__u32 secid;
	char __user *obd_name;
	__u32 lustre_svc;
	__u32 uid;
	__u32 gid;
	__u64 send_token_size;
	char __user *send_token;
	__u64 reply_buf_size;
	char __user *reply_buf;
	__s64 __user *status;
};

#define RECORD_VERSION	2

/* What an acceptor reads; the token follows. */
struct acceptor_request {
	__u64 id;
	__u32 secid;
	__u32 lustre_svc;
	__u32 uid;
	__u32 gid;
	char obd_name[LGSS_MAX_OBD_NAME];
	__u32 token_size;
	__u32 zero;
};

/* What an acceptor writes; the reply follows and fills the rest of the write. */
struct acceptor_answer {
	__u64 id;
	__s64 status;
};

static_assert(sizeof(struct acceptor_request) == 96);
static_assert(sizeof(struct acceptor_answer) == 16);

struct exchange {
	struct list_head link;
	struct acceptor_request head;
	u8 *token;
	/* Under `lock`: */
	bool delivered;
	bool answered;
	s64 status;
	u8 *reply;
	size_t reply_size;
};

static DEFINE_SPINLOCK(lock);
static LIST_HEAD(exchanges);
static u64 last_id;

static void exchange_free(struct exchange *exchange)
{
	kfree_sensitive(exchange->token);
	kfree_sensitive(exchange->reply);
	kfree(exchange);
}

/* Copy everything that the record points to out of the writing process. */
static struct exchange *exchange_new(const struct channel_record *record)
{
	struct exchange *exchange;
	long length;
	int error;

	if (!record->send_token_size)
		return ERR_PTR(-EINVAL);
	if (record->send_token_size > LGSS_MAX_TOKEN)
		return ERR_PTR(-E2BIG);
	exchange = kzalloc(sizeof(*exchange), GFP_KERNEL);
	if (!exchange)
		return ERR_PTR(-ENOMEM);
	exchange->head.secid = record->secid;
	exchange->head.lustre_svc = record->lustre_svc;
	exchange->head.uid = record->uid;
	exchange->head.gid = record->gid;
	exchange->head.token_size = record->send_token_size;
	length = strncpy_from_user(exchange->head.obd_name, record->obd_name,
				   sizeof(exchange->head.obd_name));
	error = length < 0 ? length : 0;
	if (!length || length == sizeof(exchange->head.obd_name))
		error = -EINVAL;
	if (error)
		goto fail;
	exchange->token = memdup_user(record->send_token, record->send_token_size);
	if (IS_ERR(exchange->token)) {
		error = PTR_ERR(exchange->token);
		exchange->token = NULL;
		goto fail;
	}
	return exchange;
fail:
	exchange_free(exchange);
	return ERR_PTR(error);
}

static bool is_answered(struct exchange *exchange)
{
	bool answered;

	spin_lock(&lock);
	answered = exchange->answered;
	spin_unlock(&lock);
	return answered;
}

/* Wait for the acceptor; afterwards the exchange is ours alone again. */
static int exchange_perform(struct exchange *exchange)
{
	long left;

	spin_lock(&lock);
	exchange->head.id = ++last_id;
	list_add_tail(&exchange->link, &exchanges);
	spin_unlock(&lock);
	wake_up_all(&lgss_events);

	left = wait_event_interruptible_timeout(lgss_events, is_answered(exchange),
						msecs_to_jiffies(answer_limit_ms));
	spin_lock(&lock);
	list_del(&exchange->link);
	if (!exchange->answered)
		exchange->status = -ETIMEDOUT;
	spin_unlock(&lock);
	return left < 0 && !exchange->answered ? -EINTR : 0;
}

ssize_t lgss_channel_write(const char *buffer, size_t size)
{
	struct channel_record record;
	struct exchange *exchange;
	int error;

	BUILD_BUG_ON(sizeof(record) != 72);
	if (size != sizeof(record))
		return -EINVAL;
	memcpy(&record, buffer, sizeof(record));
	if (record.version != RECORD_VERSION)
		return -EINVAL;
	exchange = exchange_new(&record);
	if (IS_ERR(exchange))
		return PTR_ERR(exchange);
	error = lgss_mount_lock_wait();
	if (!error && unmounted)
		error = -EINVAL;
	if (!error)
		error = lgss_perform_in_channel(&exchange->status);
	/* An RPC that needs a context which cannot be had fails as that did. */
	if (!error && !exchange->status)
		error = exchange_perform(exchange);
	if (!error && exchange->reply_size > record.reply_buf_size)
		error = -EMSGSIZE;
	if (!error && copy_to_user(record.reply_buf, exchange->reply, exchange->reply_size))
		error = -EFAULT;
	if (!error && put_user(exchange->status, record.status))
		error = -EFAULT;
	exchange_free(exchange);
	return error ? error : size;
}

static struct exchange *next_undelivered(void)
{
	struct exchange *exchange;

	list_for_each_entry(exchange, &exchanges, link)
		if (!exchange->delivered)
			return exchange;
	return NULL;
}

static bool any_undelivered(void)
{
	bool any;

	spin_lock(&lock);
	any = next_undelivered();
	spin_unlock(&lock);
	return any;
}

/*
 * Take the oldest request as one record. The exchange may end while it is copied
 * to user space, so what is copied is a copy.
 */
static void *take_request(size_t room, size_t *size)
{
	struct exchange *exchange;
	void *record;

	record = kmalloc(sizeof(exchange->head) + LGSS_MAX_TOKEN, GFP_KERNEL);
	if (!record)
		return ERR_PTR(-ENOMEM);
	spin_lock(&lock);
	exchange = next_undelivered();
	*size = exchange ? sizeof(exchange->head) + exchange->head.token_size : 0;
	if (exchange && *size <= room) {
		exchange->delivered = true;
		memcpy(record, &exchange->head, sizeof(exchange->head));
		memcpy(record + sizeof(exchange->head), exchange->token,
		       exchange->head.token_size);
	}
	spin_unlock(&lock);
	if (exchange && *size <= room)
		return record;
	kfree(record);
	/* It stays for a reader with more room. */
	return exchange ? ERR_PTR(-EMSGSIZE) : NULL;
}

static ssize_t acceptor_read(struct file *file, char __user *buffer, size_t room,
			     loff_t *position)
{
	void *record;
	size_t size;
	ssize_t result;

	while (!(record = take_request(room, &size))) {
		if (file->f_flags & O_NONBLOCK)
			return -EAGAIN;
		/* Not bounded: only this reader waits, and any signal ends it. */
		if (wait_event_interruptible(lgss_events, any_undelivered()))
			return -EINTR;
	}
	if (IS_ERR(record))
		return PTR_ERR(record);
	result = copy_to_user(buffer, record, size) ? -EFAULT : size;
	kfree_sensitive(record);
	return result;
}

static ssize_t acceptor_write(struct file *file, const char __user *buffer, size_t size,
			      loff_t *position)
{
	struct acceptor_answer answer;
	struct exchange *exchange;
	bool known = false;
	u8 *reply;

	if (size < sizeof(answer) || size > sizeof(answer) + LGSS_MAX_TOKEN)
		return -EINVAL;
	if (copy_from_user(&answer, buffer, sizeof(answer)))
		return -EFAULT;
	reply = memdup_user(buffer + sizeof(answer), size - sizeof(answer));
	if (IS_ERR(reply))
		return PTR_ERR(reply);
	spin_lock(&lock);
	list_for_each_entry(exchange, &exchanges, link) {
		if (exchange->head.id != answer.id || exchange->answered)
			continue;
		exchange->status = answer.status;
		exchange->reply = reply;
		exchange->reply_size = size - sizeof(answer);
		exchange->delivered = true;
		exchange->answered = true;
		known = true;
		break;
	}
	spin_unlock(&lock);
	if (!known) {
		/* The writer has given up. */
		kfree_sensitive(reply);
		return -ENOENT;
	}
	wake_up_all(&lgss_events);
	return size;
}

static __poll_t acceptor_poll(struct file *file, poll_table *table)
{
	poll_wait(file, &lgss_events, table);
	return EPOLLOUT | EPOLLWRNORM | (any_undelivered() ? EPOLLIN | EPOLLRDNORM : 0);
}

static const struct file_operations acceptor_fops = {
	.owner = THIS_MODULE,
	.read = acceptor_read,
	.write = acceptor_write,
	.poll = acceptor_poll,
	.llseek = no_llseek,
};

static struct miscdevice acceptor_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "lgss_acceptor",
	.fops = &acceptor_fops,
	.mode = 0600,
};

int lgss_channel_init(void)
{
	return misc_register(&acceptor_device);
}

void lgss_channel_exit(void)
{
	misc_deregister(&acceptor_device);
}
