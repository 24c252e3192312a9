// SPDX-License-Identifier: GPL-2.0
/*
 * The lock of a mount. It is not a mutex, because a wait for a mutex cannot be
 * both interruptible and bounded.
 */

#include <linux/atomic.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/sched/signal.h>

#include "testmod.h"

unsigned int lgss_lock_limit_ms = 15000;
module_param_named(lock_limit_ms, lgss_lock_limit_ms, uint, 0644);
MODULE_PARM_DESC(lock_limit_ms, "how long a write or a mount waits for the lock of a mount");

static atomic_t mount_locked = ATOMIC_INIT(0);

bool lgss_mount_trylock(void)
{
	return atomic_cmpxchg(&mount_locked, 0, 1) == 0;
}

void lgss_mount_unlock(void)
{
	atomic_set(&mount_locked, 0);
	wake_up_all(&lgss_events);
}

/* What init_channel does first. A real client would wait for ever. */
int lgss_mount_lock_wait(void)
{
	long left = wait_event_interruptible_timeout(lgss_events, lgss_mount_trylock(),
						     msecs_to_jiffies(lgss_lock_limit_ms));

	if (left < 0)
		return -EINTR;
	if (!left)
		return -EDEADLK;
	lgss_mount_unlock();
	return 0;
}
