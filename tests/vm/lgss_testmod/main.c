// SPDX-License-Identifier: GPL-2.0
/* Loading, unloading, and the parameter files below /sys/fs/lustre. */

#include <linux/fs.h>
#include <linux/kobject.h>
#include <linux/module.h>
#include <linux/sysfs.h>

#include "testmod.h"

DECLARE_WAIT_QUEUE_HEAD(lgss_events);

/* 0 errors .. 4 trace; warnings, as with a real client. */
static unsigned int debug_level = 1;

static ssize_t debug_level_show(struct kobject *object, struct kobj_attribute *attribute,
				char *buffer)
{
	return sysfs_emit(buffer, "%u\n", debug_level);
}

static ssize_t debug_level_store(struct kobject *object, struct kobj_attribute *attribute,
				 const char *buffer, size_t size)
{
	unsigned int level;
	int error = kstrtouint(buffer, 0, &level);

	if (error)
		return error;
	if (level > 4)
		return -EINVAL;
	debug_level = level;
	return size;
}

/* Runs in the writing process, so the record's addresses mean something here. */
static ssize_t init_channel_store(struct kobject *object, struct kobj_attribute *attribute,
				  const char *buffer, size_t size)
{
	return lgss_channel_write(buffer, size);
}

static struct kobj_attribute init_channel = __ATTR(init_channel, 0200, NULL, init_channel_store);
static struct kobj_attribute debug_level_file = __ATTR(debug_level, 0644, debug_level_show,
						       debug_level_store);

/* lustre, sptlrpc, gss, lgss_keyring: each the parent of the next */
static const char * const names[] = { "lustre", "sptlrpc", "gss", "lgss_keyring" };
#define GSS		2
#define LGSS_KEYRING	3

static struct kobject *folders[ARRAY_SIZE(names)];

static void remove_files(void)
{
	int i;

	/* Waits for the writers that are inside, whose own waits are bounded. */
	for (i = ARRAY_SIZE(folders) - 1; i >= 0; i--)
		kobject_put(folders[i]);
}

static int add_files(void)
{
	struct kobject *parent = fs_kobj;
	int error;
	int i;

	for (i = 0; i < ARRAY_SIZE(folders); i++) {
		folders[i] = kobject_create_and_add(names[i], parent);
		if (!folders[i]) {
			remove_files();
			return -ENOMEM;
		}
		parent = folders[i];
	}
	error = sysfs_create_file(folders[GSS], &init_channel.attr);
	if (!error)
		error = sysfs_create_file(folders[LGSS_KEYRING], &debug_level_file.attr);
	if (error)
		remove_files();
	return error;
}

static int add_type(void)
{
	return register_key_type(&lgss_key_type);
}

static void remove_type(void)
{
	/* Waits until every key of the type is gone, through lgss_destroy(). */
	unregister_key_type(&lgss_key_type);
}

/* What the module consists of, in the order in which it comes up; it goes backwards. */
static const struct part {
	int (*init)(void);
	void (*exit)(void);
} parts[] = {
	{ add_type, remove_type },
	{ lgss_reports_init, lgss_reports_exit },
	{ lgss_request_init, lgss_request_exit },
	{ lgss_channel_init, lgss_channel_exit },
	{ lgss_trigger_init, lgss_trigger_exit },
	{ add_files, remove_files },
};

static void remove_parts(int count)
{
	while (count--)
		parts[count].exit();
}

static int __init testmod_init(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(parts); i++) {
		int error = parts[i].init();

		if (error) {
			remove_parts(i);
			return error;
		}
	}
	return 0;
}

static void __exit testmod_exit(void)
{
	remove_parts(ARRAY_SIZE(parts));
}

module_init(testmod_init);
module_exit(testmod_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("What Lustre's ptlrpc_gss offers to user space, for tests");
