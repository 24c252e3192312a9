// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/lgss_reports: what came of requests whose process could not read it itself,
 * because it was exiting or was writing to init_channel.
 */

#include <linux/fs.h>
#include <linux/list.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/uaccess.h>

#include "testmod.h"

#define MAX_REPORTS	256

struct report {
	struct list_head link;
	size_t size;
	char *text;
};

static DEFINE_SPINLOCK(lock);
static LIST_HEAD(reports);
static unsigned int count;

static void report_free(struct report *report)
{
	if (report)
		kfree_sensitive(report->text);
	kfree(report);
}

static struct report *take_report(void)
{
	struct report *report;

	spin_lock(&lock);
	report = list_first_entry_or_null(&reports, struct report, link);
	if (report) {
		list_del(&report->link);
		count--;
	}
	spin_unlock(&lock);
	return report;
}

static void add_report(struct report *report)
{
	struct report *oldest = NULL;

	spin_lock(&lock);
	list_add_tail(&report->link, &reports);
	count++;
	spin_unlock(&lock);
	if (READ_ONCE(count) > MAX_REPORTS)
		oldest = take_report();
	report_free(oldest);
	wake_up_all(&lgss_events);
}

/* Keep a request's report; `error` is what lgss_request_perform() gave. */
void lgss_report_later(struct lgss_request *request, int error)
{
	struct report *report = kzalloc(sizeof(*report), GFP_KERNEL);

	if (!report)
		return;
	report->text = lgss_request_report(request, error, &report->size);
	if (!report->text) {
		kfree(report);
		return;
	}
	add_report(report);
}

static ssize_t reports_read(struct file *file, char __user *buffer, size_t room,
			    loff_t *position)
{
	struct report *report;
	ssize_t result;

	while (!(report = take_report())) {
		if (file->f_flags & O_NONBLOCK)
			return -EAGAIN;
		if (wait_event_interruptible(lgss_events, READ_ONCE(count)))
			return -EINTR;
	}
	result = min(room, report->size);
	if (copy_to_user(buffer, report->text, result))
		result = -EFAULT;
	report_free(report);
	return result;
}

static __poll_t reports_poll(struct file *file, poll_table *table)
{
	poll_wait(file, &lgss_events, table);
	return READ_ONCE(count) ? EPOLLIN | EPOLLRDNORM : 0;
}

static const struct file_operations reports_fops = {
	.owner = THIS_MODULE,
	.read = reports_read,
	.poll = reports_poll,
	.llseek = no_llseek,
};

static struct miscdevice reports_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "lgss_reports",
	.fops = &reports_fops,
	.mode = 0600,
};

int lgss_reports_init(void)
{
	return misc_register(&reports_device);
}

void lgss_reports_exit(void)
{
	struct report *report;

	misc_deregister(&reports_device);
	while ((report = take_report()))
		report_free(report);
}
