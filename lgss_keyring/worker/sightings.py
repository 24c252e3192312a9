"""Which processes have been seen in our own namespaces, so that they are known while they exit.

A process that is exiting has no namespaces any more (:mod:`lgss_keyring.worker.exiting`).  If it asked
for a context before, the worker of that request looked at them while it was root, and wrote what it
saw into the file ``seen`` in /run/lgss (``[krb5] ccache_directory``).  The slot of a process is
found by its pid modulo :data:`SLOTS`:

    u32 pid, uid;  u64 start time (clock ticks since boot), capability bounding set;
    u8 NoNewPrivs, Seccomp;  16 bytes boot id;  22 bytes 0
"""

from __future__ import annotations

import os
import struct

from lgss_keyring.system import own_folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lgss_keyring.system.processes import Task

SLOTS = 32768
"""The file has 2 MiB at most.  If two processes have the same slot, only the later one is known."""
_SLOT = struct.Struct("=IIQQBB16s22x")
assert _SLOT.size == 64


def remember(folder: str, task: Task, uid: int) -> None:
    """Note that ``task``, of ``uid``, is in our namespaces now.  Raises nothing: a task that cannot be
    noted is not known later."""
    _with_slot(folder, task, uid, write=True)


def was_seen(folder: str, task: Task, uid: int) -> bool:
    """Whether ``task`` was seen in our namespaces, with this ``uid`` and confined as it is now."""
    return _with_slot(folder, task, uid, write=False)


def _with_slot(folder: str, task: Task, uid: int, write: bool) -> bool:
    """Whether the slot has this task; with ``write`` it is written if it has another."""
    try:
        slot = _slot_of(task, uid)
        descriptor = _open(folder, write)
        try:
            at = task.pid % SLOTS * _SLOT.size
            found = os.pread(descriptor, _SLOT.size, at) == slot
            if write and not found:
                os.pwrite(descriptor, slot, at)
            return found
        finally:
            os.close(descriptor)
    except (OSError, ValueError, KeyError, struct.error):
        return False


def _slot_of(task: Task, uid: int) -> bytes:
    status = task.status()
    with open("/proc/sys/kernel/random/boot_id", "rb") as file:
        boot = bytes.fromhex(file.read().decode("ascii").replace("-", ""))
    confinement = int(status[b"NoNewPrivs"]), int(status[b"Seccomp"])
    return _SLOT.pack(task.pid, uid, task.start_time(), int(status[b"CapBnd"], 16), *confinement, boot)


def _open(folder: str, write: bool) -> int:
    """The file, opened; raises OSError, also if another than this user can write the folder."""
    (own_folder.prepare if write else own_folder.check)(folder)
    flags = os.O_RDWR | os.O_CREAT if write else os.O_RDONLY
    return os.open(f"{folder}/seen", flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
