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

OPTIONS = {"-R": "realm", "--realm": "realm", "--config": "config", "--timeout": "timeout"}
DEFAULT_TIMEOUT = 30
SHORTEST_TIMEOUT, LONGEST_TIMEOUT = 2, 3600
"""Seconds that --timeout takes."""
USER_PREFIX = "lgss:"
"""What the description of a ``user`` key begins with that is ours."""
LONGEST_SERIAL = 2**31 - 1
NOTES = "/run/lgss"
"""The folder of notes of known failures, and of all else that may vanish at a reboot."""


class Call:
    """What the rule and the kernel say: ``options`` by name ("realm", "config", "timeout"),
    ``words`` from the operation on, and ``unknown``, the first option that is none or has no
    value (empty: there is no such option)."""

    __slots__ = ("options", "unknown", "words")

    def __init__(self, arguments: Sequence[str]) -> None:
        self.options: dict[str, str] = {}
        self.unknown = ""
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
        self.words = list(arguments[at:])

    @property
    def serial(self) -> int:
        """The serial of the key, 0 if there is none."""
        text = self.words[1] if len(self.words) > 1 else ""
        number = int(text) if text.isascii() and text.isdecimal() and len(text) <= 10 else 0
        return number if number <= LONGEST_SERIAL else 0

    @property
    def timeout(self) -> int:
        """Seconds of --timeout, 0 for a value that is out of range."""
        text = self.options.get("timeout", "")
        if not text:
            return DEFAULT_TIMEOUT if "timeout" not in self.options else 0
        number = int(text) if text.isascii() and text.isdecimal() and len(text) <= 4 else 0
        return number if SHORTEST_TIMEOUT <= number <= LONGEST_TIMEOUT else 0

    @property
    def is_machine(self) -> bool:
        """Whether the machine's credential is asked for: callout field 4 has flags
        (docs/protocol.md 2).  The fields are checked elsewhere, later."""
        fields = self.words[4].split(":", 5)
        return len(fields) > 4 and fields[4] != ""

    @property
    def brings_credentials(self) -> bool:
        """Whether the requestor asks for itself (callout field 2 is the uid that the kernel
        says): nobody else's credentials may come along."""
        fields = self.words[4].split(":", 3)
        return not self.is_machine and len(fields) > 2 and fields[2] == self.words[5]

    @property
    def failure_note(self) -> str:
        """The file that tells of a failure of this request which is known already
        (:mod:`.known_failure`); empty for a request that cannot have one."""
        fields = self.words[4].split(":", 5)
        if len(fields) < 5:
            return ""
        flags, uid = fields[4], fields[2]
        if flags:
            if len(flags) > 3 or set(flags) - set("rmo"):
                return ""
            who = f"machine-{''.join(sorted(flags))}"
        elif uid.isascii() and uid.isdecimal() and len(uid) <= 10:
            who = uid
        else:
            return ""
        tag = "-".join(self.options[name] for name in ("realm", "config") if name in self.options)
        name = f"failed-{who}-{tag}" if tag else f"failed-{who}"
        return f"{NOTES}/{name.replace('/', '%')}" if len(name) < 200 else ""

    def wrong(self) -> str:
        """In words what is wrong with it; empty for an upcall of ours."""
        words = self.words
        if self.unknown:
            return f"unknown or incomplete option {self.unknown!a:.40}"
        if not self.timeout:
            given = self.options["timeout"]
            return f"--timeout takes {SHORTEST_TIMEOUT} to {LONGEST_TIMEOUT} seconds, not {given!a:.40}"
        if len(words) != 10:
            return f"10 arguments are needed from `create` on, {len(words)} were given"
        if words[0] != "create":
            return f"operation {words[0]!a:.40} is not `create`"
        if words[2] not in ("lgssc", "user"):
            return f"a key of type {words[2]!a:.40} is not ours"
        if words[2] == "user" and not words[3].startswith(USER_PREFIX):
            return f"a user key named {words[3]!a:.60} is not ours: those begin with {USER_PREFIX}"
        return "" if self.serial else f"key serial {words[1]!a:.40} is not a positive number"
