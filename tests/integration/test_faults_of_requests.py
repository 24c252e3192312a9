"""Bad input: arguments, serials, callouts, identities.

In each the caller of request_key(2) is back within 100 ms, the key carries the right
error within a second, the log says why, and nothing is left (the fixture nothing_left).
"""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from lgss_keyring.formats import payload
from tests.support import table
from tests.support.requestor import Requestor
from tests.support.site import USER_UID, Site, Upcalls, machine_callout, user_callout

from .failures import ANSWERED, failed, note_caller
from .kernel_log import kernel_log
from .waiting import pace

pytestmark = pytest.mark.vm


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("%o %k %t %d %c %u %g %T %P", "9 were given"),
        ("%o %k %t %d %c %u %g %T %P %S more", "11 were given"),
        ("update %k %t %d %c %u %g %T %P %S", "operation 'update'"),
        ("%o %k keyring %d %c %u %g %T %P %S", "type 'keyring'"),
        ("%o %k user elsewhere %c %u %g %T %P %S", "named 'elsewhere'"),
        ("--timeout x %o %k %t %d %c %u %g %T %P %S", "--timeout takes 2 to 3600"),
        ("--nonsense x %o %k %t %d %c %u %g %T %P %S", "option '--nonsense'"),
    ],
)
def test_wrong_arguments(site: Site, user: Requestor, arguments: str, words: str) -> None:
    with site.upcalls(arguments=arguments) as upcalls:
        answer = user.ask(upcalls.name(), user_callout())
        assert answer.error == errno.EINVAL
        note_caller(answer)
        (event,) = upcalls.log("LGSS_ERROR=bad-arguments")
    assert words in event["message"]
    assert event["LGSS_REQUESTOR"] == str(USER_UID)
    table.judge("bad-arguments", event["LGSS_ERRNO"], event["message"])


@pytest.mark.parametrize("serial", ["12x", "-5", "0", "99999999999999999999", "%d"])
def test_no_valid_serial(site: Site, user: Requestor, serial: str) -> None:
    """Nothing can be done for that key: the kernel negates it, the log says why."""
    with site.upcalls(arguments=f"%o {serial} %t %d %c %u %g %T %P %S") as upcalls:
        answer = user.ask(upcalls.name(), user_callout())
        assert answer.error == errno.ENOKEY
        note_caller(answer)
        (event,) = upcalls.log("LGSS_ERROR=bad-arguments")
    assert "serial" in event["message"] or "keyctl_assume_authority" in event["message"]


def test_serial_of_a_key_that_is_not_ours(site: Site, user: Requestor) -> None:
    with site.upcalls(arguments="%o 1 %t %d %c %u %g %T %P %S") as upcalls:
        answer = user.ask(upcalls.name(), user_callout())
        assert answer.error == errno.ENOKEY
        (event,) = upcalls.log("LGSS_ERROR=bad-arguments")
    assert "not ours" in event["message"]


def with_field(index: int, text: str) -> str:
    fields = user_callout().split(":")
    fields[index] = text
    return ":".join(fields)


@pytest.mark.parametrize(
    ("callout", "words"),
    [
        ("1:krb5:0", "3 fields"),
        (":".join(user_callout().split(":")[:10]), "10 fields"),
        (user_callout() + ":more", "13 fields"),
        (user_callout(client_uuid="u" * 1200), "more than 1023"),
        (with_field(11, "tab\there"), "not printable ASCII"),
        (user_callout().encode() + b"\xff\xfe", "not printable ASCII"),
        (user_callout(client_uuid="\u00fcber"), "not printable ASCII"),
        (with_field(0, "42x"), "secid '42x'"),
        (with_field(0, "0x"), "secid '0x'"),
        (with_field(0, " 42"), "secid ' 42'"),
        (with_field(0, str(2**31)), "out of range"),
        (with_field(2, str(2**32 - 1)), "uid '4294967295' is out of range"),
        (with_field(2, "-1"), "uid '-1'"),
        (with_field(2, "9" * 500), "uid '999"),
        (with_field(3, "1_000"), "gid '1_000'"),
        (with_field(6, "3"), "Lustre service '3'"),
        (with_field(7, "0x10000000000000000"), "target NID"),
        (with_field(7, "nid"), "target NID 'nid'"),
        (with_field(9, ""), "own NID ''"),
        (with_field(10, "-3"), "pid '-3'"),
        (with_field(1, "ntlm"), "mechanism 'ntlm'"),
        (with_field(1, "k" * 16), "mechanism"),
        (with_field(4, "rx"), "flags 'rx'"),
        (with_field(4, "rr"), "flags 'rr'"),
        (with_field(5, "z"), "service type 'z'"),
        (with_field(5, ""), "service type ''"),
        (with_field(8, "o" * 128), "obd name has 128 bytes"),
        (with_field(8, ""), "obd name has 0 bytes"),
    ],
)
def test_malformed_callout(upcalls: Upcalls, user: Requestor, callout: str | bytes, words: str) -> None:
    answer = user.ask(upcalls.name(), callout)
    failed(answer, upcalls, errno.EINVAL, "bad-request", words)
    assert requestors(upcalls) == {str(USER_UID)}


def requestors(upcalls: Upcalls) -> set[str | None]:
    """The requestors that the lines with an error name."""
    return {event.get("LGSS_REQUESTOR") for event in upcalls.log() if "LGSS_ERROR" in event}


def test_nul_ends_the_callout(upcalls: Upcalls, user: Requestor) -> None:
    """The kernel takes a C string: what is behind the NUL never reaches us."""
    callout = b"1:krb5\0" + user_callout().encode()
    failed(user.ask(upcalls.name(), callout), upcalls, errno.EINVAL, "bad-request", "2 fields")


def test_callout_for_another_mechanism_of_lustre(upcalls: Upcalls, user: Requestor) -> None:
    answer = user.ask(upcalls.name(), with_field(1, "sk"))
    failed(answer, upcalls, errno.EPROTONOSUPPORT, "mechanism-unsupported", "mechanism sk")


def test_hostile_text_cannot_forge_a_log_line(upcalls: Upcalls, user: Requestor) -> None:
    hostile = "x\n2026-01-01T00:00:00.000 lgss_keyring[1] info: key 1: fine | LGSS_ERROR=none"
    answer = user.ask(upcalls.name(), with_field(1, hostile))
    failed(answer, upcalls, errno.EINVAL, "bad-request")
    assert not [event for event in upcalls.log() if event.get("LGSS_ERROR") == "none"]


def test_another_uid_is_refused(upcalls: Upcalls, user: Requestor) -> None:
    answer = user.ask(upcalls.name(), user_callout(0))
    failed(answer, upcalls, errno.EACCES, "refused", f"uid {USER_UID} may not ask for a context of uid 0")
    (event,) = [event for event in upcalls.log() if "LGSS_ERROR" in event]
    assert (event["LGSS_REQUESTOR"], event["LGSS_UID"]) == (str(USER_UID), "0")


@pytest.mark.parametrize("flags", ["r", "m", "o", "rmo"])
def test_machine_flags_of_an_ordinary_user_are_refused(upcalls: Upcalls, user: Requestor, flags: str) -> None:
    answer = user.ask(upcalls.name(), machine_callout(flags))
    failed(answer, upcalls, errno.EACCES, "refused", "machine's credential")
    answer = user.ask(upcalls.name(), user_callout(flags=flags))
    failed(answer, upcalls, errno.EACCES, "refused", "machine's credential")


def test_pid_of_nobody(upcalls: Upcalls, user: Requestor) -> None:
    failed(
        user.ask(upcalls.name(), user_callout(pid=2**22)),
        upcalls,
        errno.ESRCH,
        "namespace",
        "no such process",
    )


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        ("[log]\nfiel = 'x'\n", 0o644, "unknown key fiel"),
        ("not toml", 0o644, "line 1"),
        ("", 0o666, "others may write it"),
        ("[krb5]\nkeytab = ''\n", 0o644, "[krb5] keytab: it is empty"),
        ("[krb5]\nkeytab = 'krb5.keytab'\n", 0o644, "[krb5] keytab: an absolute path is needed"),
        ("[hosts]\n'192.0.2.5@tpc' = 'mds1'\n", 0o644, "'192.0.2.5@tpc' is no NID"),
        ("[hosts]\n'192.0.2.5@tcp' = 'mds 1'\n", 0o644, "a host name in quotes is needed"),
    ],
    ids=["key", "toml", "mode", "empty", "relative", "nid", "host"],
)
def test_bad_configuration(site: Site, user: Requestor, text: str, mode: int, words: str) -> None:
    with site.upcalls() as upcalls, kernel_log() as said:
        upcalls.config_file.write_text(text)
        upcalls.config_file.chmod(mode)
        answer = user.ask(upcalls.name(), user_callout())
        line = said(f"key {answer.key}: ")
    assert payload.unpack(answer.data) == payload.FailurePayload(errno.EINVAL, 0)
    note_caller(answer)
    assert answer.updated is not None and pace.met(answer.updated, ANSWERED)
    if line:
        table.judge("config", "EINVAL", line)
        assert str(upcalls.config_file) in line and words in line and "defect" not in line
        assert line.endswith(f" | LGSS_REQUESTOR={USER_UID} LGSS_ERROR=config")


def test_log_file_that_cannot_be_written(site: Site, user: Requestor, tmp_path: Path) -> None:
    """It is reported where lines go anyway, once for each upcall."""
    with site.upcalls({"log": {"file": str(tmp_path)}}) as upcalls, kernel_log() as said:
        answer = user.ask(upcalls.name(), user_callout())
        assert isinstance(payload.unpack(answer.data), payload.ContextPayload)
        line = said(f"cannot write the log file {tmp_path} ([log] file): Is a directory")
        assert not line or line.endswith(f" | LGSS_REQUESTOR={USER_UID}")
