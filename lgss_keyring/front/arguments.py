"""The front's arguments (docs/protocol.md 1): split here, once, for all that need them.

Imported while a caller waits; imports nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    LogRefusal = Callable[[int, "Call", str, int], None]
    """Logs that a key was refused; takes its serial (0: unknown), the call, the reason and
    the errno given to the requestor."""

OPTIONS = {
    "-R": "realm",
    "--realm": "realm",
    "--config": "config",
    "--timeout": "timeout",
    "--lgssd": "lgssd",
    # Internal: from the native front's processes, which become this program.
    "--instantiated": "instantiated",
    "--killed": "killed",
}
DEFAULT_TIMEOUT = 30
SHORTEST_TIMEOUT, LONGEST_TIMEOUT = 2, 3600
"""Seconds that --timeout takes."""
USER_PREFIX = "lgss:"
"""The beginning of the description of each ``user`` key that is ours."""
LONGEST_SERIAL = 2**31 - 1
NOTES = "/run/lgss"
"""The folder of the notes of known failures, and of other files that need not outlive a reboot."""
LGSSD = f"{NOTES}/upcall.sock"
"""The socket of lgssd, unless --lgssd names another."""
SLOTS = f"{NOTES}/slots"
"""The folder of the locks that count a uid's upcalls, and of its queue's socket."""


class Call:
    """The arguments of one run, from the rule's line and from the kernel.

    ``options``
        the values of options by name: "realm", "config", "timeout", "lgssd",
        "instantiated", "killed".
    ``arguments``
        those of docs/protocol.md 1, from ``create`` on.
    ``unknown``
        the first option that is not one of ours or has no value; empty if there is none.
    ``has_keyring``
        whether a keyring with the requestor's credentials is linked into our session keyring.

    The properties are empty, or 0, where an argument is missing.
    """

    __slots__ = ("arguments", "has_keyring", "options", "unknown")

    def __init__(self, arguments: Sequence[str]) -> None:
        self.options: dict[str, str] = {}
        self.unknown = ""
        self.has_keyring = False
        # Options stand before the operation only: what comes behind it is the requestor's
        # own text.
        at = 0
        while at < len(arguments) and arguments[at].startswith("-"):
            name = OPTIONS.get(arguments[at])
            if name is None or at + 1 == len(arguments):
                self.unknown = self.unknown or arguments[at]
            else:
                self.options[name] = arguments[at + 1]
            at += 2
        self.arguments = list(arguments[at:])

    def _argument(self, index: int) -> str:
        return self.arguments[index] if index < len(self.arguments) else ""

    @property
    def serial(self) -> int:
        """The serial of the key, 0 if there is none."""
        text = self._argument(1)
        number = int(text) if text.isascii() and text.isdecimal() and len(text) <= 10 else 0
        return number if number <= LONGEST_SERIAL else 0

    @property
    def key_type(self) -> str:
        """The key's type, ``lgssc`` or ``user``."""
        return self._argument(2)

    @property
    def callout(self) -> str:
        """Callout info, not checked."""
        return self._argument(4)

    def replace_callout(self, text: str) -> None:
        """Let ``text`` be the callout info from now on."""
        self.arguments[4] = text

    @property
    def requestor(self) -> str:
        """The uid of the requestor."""
        return self._argument(5)

    @property
    def keyrings(self) -> list[str]:
        """The serials of the requestor's thread, process and session keyring."""
        return self.arguments[7:]

    @property
    def timeout(self) -> int:
        """Seconds of --timeout, 0 for a value that is out of range."""
        text = self.options.get("timeout", "")
        if not text:
            return DEFAULT_TIMEOUT if "timeout" not in self.options else 0
        number = int(text) if text.isascii() and text.isdecimal() and len(text) <= 4 else 0
        return number if SHORTEST_TIMEOUT <= number <= LONGEST_TIMEOUT else 0

    @property
    def lgssd(self) -> str:
        """The path of lgssd's socket; empty for a request that lgssd is not to serve."""
        return self.options.get("lgssd", LGSSD)

    @property
    def instantiated(self) -> tuple[int, int]:
        """The value FD:STARTED of --instantiated: the read end of a pipe, from which the byte that
        says that the key is instantiated may be read already; and when the front began, in
        milliseconds of CLOCK_MONOTONIC.  (-1, 0) for any other value, and without one."""
        words = self.options.get("instantiated", "").split(":")
        if len(words) != 2 or not all(w.isascii() and w.isdecimal() and len(w) <= 15 for w in words):
            return -1, 0
        return int(words[0]), int(words[1])

    @property
    def killed(self) -> tuple[int, str]:
        """The value ERRNO:CAUSE of --killed: what the native front's witness has given to the key, and
        what had ended the process that served it."""
        number, _, cause = self.options.get("killed", "").partition(":")
        return int(number) if number.isascii() and number.isdecimal() and len(number) <= 4 else 0, cause

    @property
    def is_machine(self) -> bool:
        """Whether the machine's credential is asked for: callout field 4 has flags
        (docs/protocol.md 2).  The fields are checked elsewhere, later."""
        fields = self.callout.split(":", 5)
        return len(fields) > 4 and fields[4] != ""

    @property
    def brings_credentials(self) -> bool:
        """Whether the credentials in the requestor's keyrings may be used: only if the
        requestor asks for a context of its own uid (callout field 2)."""
        return not self.is_machine and self.asked != "" and self.asked == self.requestor

    @property
    def asked(self) -> str:
        """The uid that a context is asked for (callout field 2), not checked."""
        fields = self.callout.split(":", 3)
        return fields[2] if len(fields) > 2 else ""

    @property
    def failure_note(self) -> str:
        """The path of the note that says that this request is known to fail
        (:mod:`.known_failure`), if there is one; empty for a request that cannot have any, or
        that is to be refused whatever a note says."""
        fields = self.callout.split(":", 5)
        if len(fields) < 5:
            return ""
        flags, uid, requestor = fields[4], fields[2], self.requestor
        if flags:
            if len(flags) > 3 or set(flags) - set("rmo") or (requestor != "0" and self.key_type == "user"):
                return ""
            owner = f"machine-{''.join(sorted(flags))}"
        elif uid.isascii() and uid.isdecimal() and len(uid) <= 10 and requestor in ("0", uid):
            owner = uid
        else:
            return ""
        tag = "-".join(self.options[name] for name in ("realm", "config") if name in self.options)
        name = f"failed-{owner}-{tag}" if tag else f"failed-{owner}"
        return f"{NOTES}/{name.replace('/', '%')}" if len(name) < 200 else ""

    def wrong(self) -> str:
        """What is wrong with this call, as a sentence; empty if it is an upcall of ours."""
        arguments = self.arguments
        if self.unknown:
            return f"unknown or incomplete option {self.unknown!a:.40}"
        if not self.timeout:
            given = self.options["timeout"]
            return f"--timeout takes {SHORTEST_TIMEOUT} to {LONGEST_TIMEOUT} seconds, not {given!a:.40}"
        if "instantiated" in self.options and self.instantiated[0] < 0:
            return f"--instantiated takes FD:STARTED, not {self.options['instantiated']!a:.40}"
        if len(arguments) != 10:
            return f"10 arguments are needed from `create` on, {len(arguments)} were given"
        if arguments[0] != "create":
            return f"operation {arguments[0]!a:.40} is not `create`"
        if arguments[2] not in ("lgssc", "user"):
            return f"a key of type {arguments[2]!a:.40} is not ours"
        if arguments[2] == "user" and not arguments[3].startswith(USER_PREFIX):
            return f"a user key named {arguments[3]!a:.60} is not ours: those begin with {USER_PREFIX}"
        return "" if self.serial else f"key serial {arguments[1]!a:.40} is not a positive number"
