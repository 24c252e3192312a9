// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/lgss_trigger: make the kernel request a key, at once or at one of the moments
 * at which Lustre does so on its own: when a file is closed, or while a process
 * writes to init_channel.
 */

#include <linux/cred.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/uaccess.h>

#include "testmod.h"

/* The request that the next write to init_channel makes; its file holds it. */
static DEFINE_SPINLOCK(lock);
static struct lgss_request *for_channel;

/* One open file: a request is written, its outcome is read. */
struct session {
	struct mutex lock;
	char *report;
	size_t report_len;
	struct lgss_request *at_close;
	struct lgss_request *in_channel;
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

static struct lgss_request *take_for_channel(void)
{
	struct lgss_request *request;

	spin_lock(&lock);
	request = for_channel;
	for_channel = NULL;
	spin_unlock(&lock);
	return request;
}

/*
 * What a write to init_channel does before its round trip: the request that was left
 * for it, if any, in the writer's own context. Gives the errno of that request's
 * outcome as *status, and its own where it did not come to an end.
 */
int lgss_perform_in_channel(s64 *status)
{
	struct lgss_request *request = take_for_channel();
	int error;

	*status = 0;
	if (!request)
		return 0;
	error = lgss_request_perform(request);
	lgss_report_later(request, error);
	if (!error)
		*status = request->error;
	lgss_request_put(request);
	return error;
}

/* A request that no write to init_channel has made goes with its file. */
static void disarm_channel(struct session *session)
{
	bool unused = false;

	if (!session->in_channel)
		return;
	spin_lock(&lock);
	if (for_channel == session->in_channel) {
		for_channel = NULL;
		unused = true;
	}
	spin_unlock(&lock);
	if (unused)
		lgss_request_put(session->in_channel);
	lgss_request_put(session->in_channel);
}

/*
 * In a process that exits this runs as task work, after the kernel has taken the
 * process's namespaces away.
 */
static int session_release(struct inode *inode, struct file *file)
{
	struct session *session = file->private_data;
	struct lgss_request *request = session->at_close;

	if (request) {
		lgss_report_later(request, lgss_request_perform(request));
		lgss_request_put(request);
	}
	disarm_channel(session);
	kfree_sensitive(session->report);
	kfree(session);
	return 0;
}

static int arm_close(struct session *session, struct lgss_request *request)
{
	if (session->at_close)
		return -EBUSY;
	kref_get(&request->ref);
	session->at_close = request;
	return 0;
}

static int arm_channel(struct session *session, struct lgss_request *request)
{
	bool busy;

	if (!uid_eq(current_euid(), GLOBAL_ROOT_UID))
		return -EPERM;
	if (session->in_channel)
		return -EBUSY;
	/* Two references: the file's, and that of the write that makes it. */
	kref_get(&request->ref);
	kref_get(&request->ref);
	spin_lock(&lock);
	busy = for_channel;
	if (!busy)
		for_channel = request;
	spin_unlock(&lock);
	if (busy) {
		lgss_request_put(request);
		lgss_request_put(request);
		return -EBUSY;
	}
	session->in_channel = request;
	return 0;
}

static int perform_now(struct session *session, struct lgss_request *request)
{
	int error = lgss_request_perform(request);

	if (error)
		return error;
	session->report = lgss_request_report(request, 0, &session->report_len);
	return session->report ? 0 : -ENOMEM;
}

static int perform(struct session *session, struct lgss_request *request)
{
	switch (request->when) {
	case LGSS_AT_CLOSE:
		return arm_close(session, request);
	case LGSS_IN_CHANNEL:
		return arm_channel(session, request);
	default:
		return perform_now(session, request);
	}
}

static ssize_t session_write(struct file *file, const char __user *buffer, size_t size,
			     loff_t *position)
{
	struct session *session = file->private_data;
	struct lgss_request *request;
	ssize_t error;

	if (mutex_lock_interruptible(&session->lock))
		return -EINTR;
	kfree_sensitive(session->report);
	session->report = NULL;
	session->report_len = 0;
	request = lgss_request_new(buffer, size);
	if (IS_ERR(request)) {
		error = PTR_ERR(request);
	} else {
		error = perform(session, request);
		lgss_request_put(request);
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

/* For every user, as request_key(2) is: the requestor is the process that writes. */
static struct miscdevice session_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "lgss_trigger",
	.fops = &session_fops,
	.mode = 0666,
};

int lgss_trigger_init(void)
{
	return misc_register(&session_device);
}

void lgss_trigger_exit(void)
{
	misc_deregister(&session_device);
}
