"""What an upcall's processes and lgssd say to each other: both halves, and the word; without keys."""

from __future__ import annotations

import _socket
import errno
import time
from pathlib import Path

import pytest

from lgss_keyring.daemon import upcall_messages
from lgss_keyring.daemon.upcall_messages import Done, Reply, Upcall
from lgss_keyring.formats.callout import parse_request
from lgss_keyring.front import lgssd, lgssd_messages
from lgss_keyring.front.arguments import Call
from lgss_keyring.front.lgssd_messages import Answer, MessageError, Token

USER = "42:krb5:1000:1000::-:1:0x20000c0a80105:lustre-MDT0000-mdc:0x20000c0a80106:0"
WORDS = ("create", "5", "lgssc", "x", USER, "1000", "1000", "0", "0", "0")
MACHINE = (*WORDS[:4], USER.replace("::", ":r:"), *WORDS[5:])
GO, AT_WORK, YOURSELF = lgssd_messages.GO, lgssd_messages.AT_WORK, lgssd_messages.DO_IT_YOURSELF
REJECTION = upcall_messages.pack_answer(errno.EKEYEXPIRED, 7, 1.5, b"payload")
CONTEXT = upcall_messages.pack_answer(0, 7, 1.5, b"payload")


def test_request_comes_over() -> None:
    words = (*WORDS[:3], "\udcff", *WORDS[4:])
    message = lgssd_messages.pack_upcall(1500, 30, "A.REALM", "/etc/x", words)
    assert message is not None
    assert upcall_messages.unpack(message) == Upcall(1.5, 30, "A.REALM", "/etc/x", words)


@pytest.mark.parametrize("words", [WORDS[1:], (*WORDS[:9], "x\0"), (*WORDS[:9], "x" * 8192)])
def test_request_that_is_not_for_lgssd(words: tuple[str, ...]) -> None:
    assert lgssd_messages.pack_upcall(0, 30, "", "", words) is None


def test_reply_and_end_come_over() -> None:
    assert upcall_messages.unpack(lgssd_messages.pack_reply(-110, 0, b"")) == Reply(-110, 0, b"")
    assert upcall_messages.unpack(lgssd_messages.pack_reply(0, 0, b"x" * 8192)) == Reply(0, 0, b"x" * 8192)
    assert upcall_messages.unpack(lgssd_messages.pack_done(126)) == Done(126)
    for number in (lgssd_messages.LARGEST_ERRNO + 1, 2**32 - 1):
        for message in (lgssd_messages.pack_done(number), lgssd_messages.pack_reply(0, number, b"")):
            with pytest.raises(MessageError):
                upcall_messages.unpack(message)


def test_token_comes_over() -> None:
    message = upcall_messages.pack_token(parse_request(WORDS), 0x10001, 555, 9, "/sys/x", b"a\0b")
    token = Token(message)
    assert (token.secid, token.service, token.uid, token.gid, token.limit) == (42, 0x10001, 1000, 555, 9)
    assert (token.path, token.obd_name, token.token) == (b"/sys/x", b"lustre-MDT0000-mdc", b"a\0b")
    for length in (1, 20, 21, 27, len(message) - 3):
        with pytest.raises(MessageError):
            Token(message[:length])
    with pytest.raises(MessageError):
        Token(message.replace(b"/sys", b"xsys"))


def test_answer_comes_over() -> None:
    answer = Answer(REJECTION)
    assert (answer.errno, answer.life, answer.patience) == (errno.EKEYEXPIRED, 7, 1.5)
    assert answer.payload == b"payload"
    for message in (REJECTION[:13], REJECTION[:1], upcall_messages.pack_answer(4096, 7, 1, b"x")):
        with pytest.raises(MessageError):
            Answer(message)


def heard(
    tmp_path: Path,
    messages: list[bytes],
    words: tuple[str, ...] = WORDS,
    ends: bool = False,
    timeout: int = 30,
) -> tuple[tuple[bool, int, int], float, bytes]:
    """What the front makes of ``messages``, the seconds that it takes, and what its child finds next."""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    call = Call(["--timeout", str(timeout), "--lgssd", str(tmp_path / "socket"), *words])
    for message in messages:
        theirs.send(message)
    if ends:
        theirs.close()
    started = time.monotonic()
    word = lgssd.Connection(ours, call, started).word()
    took = time.monotonic() - started
    try:
        ours.setblocking(False)
        left = ours.recv(100)
    except BlockingIOError:
        left = b"nothing"
    ours.close()
    theirs.close()
    return word, took, left


@pytest.mark.parametrize("words", [WORDS, MACHINE], ids=["user", "machine"])
@pytest.mark.parametrize(
    ("messages", "word", "left"),
    [
        ([GO], (True, 0, 0), b"nothing"),
        ([AT_WORK, AT_WORK, GO, b"T"], (True, 0, 0), b"T"),
        ([REJECTION], (True, errno.EKEYEXPIRED, 7), b"nothing"),
        ([CONTEXT, b"x"], (True, 0, 0), CONTEXT),
        ([b"T/", b"x"], (True, 0, 0), b"T/"),
        ([YOURSELF], (False, 0, 0), b"nothing"),
        ([b"?"], (False, 0, 0), b"nothing"),
        ([b"GG"], (False, 0, 0), b"nothing"),
        ([b"A"], (False, 0, 0), b"A"),
        ([bytes(20001)], (False, 0, 0), bytes(100)),
    ],
)
def test_word(
    tmp_path: Path, words: tuple[str, ...], messages: list[bytes], word: tuple[bool, int, int], left: bytes
) -> None:
    assert heard(tmp_path, messages, words)[::2] == (word, left)


def test_end_instead_of_the_word(tmp_path: Path) -> None:
    assert heard(tmp_path, [], ends=True)[0] == (False, 0, 0)
    assert heard(tmp_path, [AT_WORK], MACHINE, ends=True)[0] == (False, 0, 0)


def test_no_word_in_time(tmp_path: Path) -> None:
    """A user's request goes on without it; the machine's without lgssd."""
    word, took, _ = heard(tmp_path, [AT_WORK] * 50)
    assert word == (True, 0, 0) and took > 0.045
    (tmp_path / "socket.word").write_text("120\n")
    word, took, _ = heard(tmp_path, [])
    assert word == (True, 0, 0) and took > 0.115
    word, took, _ = heard(tmp_path, [AT_WORK], MACHINE)
    assert word == (False, 0, 0) and took >= lgssd_messages.SILENCE - 0.01
    word, took, _ = heard(tmp_path, [], MACHINE, timeout=2)
    assert word == (False, 0, 0) and 0.95 < took < lgssd_messages.SILENCE


@pytest.mark.parametrize("text", ["", "x", "-5", "99999999"])
def test_odd_word_ms(tmp_path: Path, text: str) -> None:
    (tmp_path / "socket.word").write_text(text)
    assert heard(tmp_path, [], timeout=2)[0] == (True, 0, 0)
