"""docs/by-hand.md as a person types it: each command, at a terminal, in its order."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import runs
from tests.support.runs import RULES
from tests.support.stage import CHECKOUT

from .waiting import within

PAGE = CHECKOUT / "docs/by-hand.md"
READY, MORE = "ready> ", "more> "
EXAMPLE_SERIAL = "234884109"
"""Stands on the page for what keyctl has just answered."""
FOLDER = Path("/var/lib/lgss-hand")  # as on the page
RULE = RULES / "lgss-hand.conf"


class Terminal:
    """A root shell at a terminal; lines go in when it, or what it runs, asks for one."""

    def __init__(self) -> None:
        self.pid, self._end = pty.fork()
        if self.pid == 0:
            os.chdir(CHECKOUT)
            environment = {**os.environ, "PS1": READY, "PS2": MORE, "TERM": "dumb"}
            os.execve("/bin/sh", ["sh", "-i"], environment)
        self._await(READY)

    def _await(self, *prompts: str, seconds: float = 60) -> str:
        output = ""
        end = time.monotonic() + seconds
        while not output.endswith(prompts):
            assert select.select([self._end], [], [], max(end - time.monotonic(), 0))[0], output
            output += os.read(self._end, 65536).decode("utf-8", "replace").replace("\r\n", "\n")
        return output

    def type(self, line: str, *prompts: str) -> str:
        """Type a line; what was printed until the next prompt."""
        os.write(self._end, line.encode() + b"\n")
        # The terminal's echo comes first.
        return self._await(*(prompts or (READY, MORE))).partition("\n")[2]

    def close(self) -> None:
        """Hang up."""
        os.close(self._end)
        os.waitpid(self.pid, 0)


def clean_up() -> None:
    """Take away what the page makes."""
    RULE.unlink(missing_ok=True)
    for name in ("kdc/pid", "acceptor.pid"):
        try:
            os.kill(int((FOLDER / name).read_text()), signal.SIGTERM)
        except (OSError, ValueError):
            pass
    shutil.rmtree(FOLDER, ignore_errors=True)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    with runs.alone("by-hand", 100) as is_alone:
        if not is_alone or FOLDER.exists() or RULE.exists():
            pytest.skip("somebody is at docs/by-hand.md")
        shell = Terminal()
        try:
            yield shell
        finally:
            clean_up()
            shell.close()


def until(terminal: Terminal, line: str, good: Callable[[str], bool]) -> None:
    """Type ``line`` again and again, for ten seconds."""
    end = time.monotonic() + 10
    while not good(output := terminal.type(line)):
        assert time.monotonic() < end, output
        time.sleep(0.1)


@pytest.mark.timeout(240)  # another run may be at it
def test_every_command_of_the_page(terminal: Terminal) -> None:
    lines = "".join(re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)).splitlines()
    assert len(lines) > 50
    serials: list[str] = []
    shown: dict[str, str] = {}
    for line in lines:
        if line.startswith("rm -f "):
            break
        if line.startswith("kinit"):
            terminal.type(line, "alice@HAND.TEST: ")
            line = "secret"
        if EXAMPLE_SERIAL in line:
            line = line.replace(EXAMPLE_SERIAL, serials[-1])
        output = shown[line] = terminal.type(line)
        assert "rror" not in output and "not found" not in output, f"{line}\n{output}"
        if "lgss:hand:4" in line:
            assert "Permission denied" in output
        elif line.startswith("keyctl request2"):
            found = re.match(r"(\d+)\n", output)
            assert found, output
            serials.append(found[1])
            # People read the answer before they go on: the placeholder has one byte.
            until(terminal, f"keyctl pipe {found[1]} | wc -c", lambda output: output.split()[0] != "1")
        if "lgss:hand:3" in line:
            until(terminal, f"keyctl pipe {serials[-1]}", lambda output: "Key has expired" in output)
    first, again, *_ = serials
    assert again == first
    assert "context\nseq window" in "".join(shown.values())
    assert "lgss:hand:1" in shown["keyctl show @s"]
    for words in (
        "initiator lustre_root/localhost@HAND.TEST",
        "initiator alice@HAND.TEST",
        "uid 61999 has no usable Kerberos credential: No Kerberos credentials available",
        "uid 61999 may not ask for the machine's credential (flags r)",
    ):
        # The last line may come after the answer that it is about.
        assert within(5, lambda words=words: words in (FOLDER / "log").read_text()), words
    # Undo.
    for line in lines[lines.index(f"rm -f {RULE}") :]:
        terminal.type(line)
    assert not FOLDER.exists() and not RULE.exists()
