"""Noting failures that the next attempt cannot change, for the front to answer by.

:mod:`lgss_keyring.front.known_failure` says what a note is, and reads it.
"""

from __future__ import annotations

import os
import stat

from lgss_keyring.formats.errors import Kind
from lgss_keyring.front import arguments, known_failure
from lgss_keyring.front.answer import FAILURE_LIFE
from lgss_keyring.system import config_file
from lgss_keyring.worker import identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from lgss_keyring.formats.callout import UpcallRequest
    from lgss_keyring.formats.config import Config
    from lgss_keyring.formats.outcome import Failed
    from lgss_keyring.front.arguments import Call

LONGEST_LIFE = 10
"""Seconds.  The first note of a cause of the machine's lives for FAILURE_LIFE, each further
one twice as long, up to this."""
# By kind, whether it is about one acceptor only.
NOTED = {
    Kind.KEYTAB_MISSING: False,
    Kind.KEYTAB_UNREADABLE: False,
    Kind.NOT_IN_KEYTAB: False,
    Kind.CLIENT_UNKNOWN: False,
    Kind.CLIENT_EXPIRED: False,
    Kind.CLIENT_REVOKED: False,
    Kind.PASSWORD_EXPIRED: False,
    Kind.NO_TICKET: False,
    Kind.NO_CREDENTIAL: False,
    Kind.TICKET_EXPIRED: False,
    Kind.KDC_UNREACHABLE: False,
    Kind.SERVICE_UNKNOWN: True,
}
NOTES_LIMIT = 1000
"""How many notes there may be."""


def note(call: Call, request: UpcallRequest, failure: Failed, settings: Config, is_word: bool) -> int:
    """Note ``failure`` if the next attempt cannot change it; gives the seconds that it is
    good for.  ``is_word``: nothing was instantiated yet, so a limit that was hit is the
    KDC's."""
    one_acceptor = NOTED.get(failure.kind)
    if failure.kind == Kind.LIMIT and is_word:
        one_acceptor = True  # it may have been the name service, slow for this one name
    if one_acceptor is None or known_failure.is_elsewhere(str(request.pid)):
        return FAILURE_LIFE
    if request.is_machine and request.requestor_uid != 0:
        # An ordinary user can forge such a request, and choose an acceptor that makes it
        # fail: root's requests must not be rejected for that.
        return FAILURE_LIFE
    name = call.failure_note
    scope = f"{request.lustre_service},{call.callout.split(':')[7]}" if one_acceptor else "*"
    life = _life(name, failure, scope) if request.is_machine else FAILURE_LIFE
    head = f"{failure.errno} {known_failure.now() + life:.3f} {life} {scope} {failure.kind}"
    _write(
        name,
        [
            head,
            *(
                f"{known_failure.fingerprint(file)} {file}"
                for file in _causes(call, request, failure, settings)
            ),
        ],
    )
    return life


def forget(call: Call) -> None:
    """Take the note away: it works again."""
    try:
        os.unlink(call.failure_note)
    except OSError:
        pass


def _life(name: str, failure: Failed, scope: str) -> int:
    """Twice the life of the last note, if that was of the same cause and not long ago."""
    try:
        number, until, life, last_scope, kind = known_failure.read(name)[0].split(" ", 4)
        is_same = (int(number), last_scope, kind) == (failure.errno, scope, failure.kind)
        if is_same and known_failure.now() < float(until) + LONGEST_LIFE:
            return min(2 * int(life), LONGEST_LIFE)
    except (ValueError, IndexError):
        pass
    return FAILURE_LIFE


def _causes(call: Call, request: UpcallRequest, failure: Failed, settings: Config) -> Sequence[str]:
    """The files whose change may end the failure."""
    krb5 = settings.krb5
    files = [call.options.get("config") or config_file.DEFAULT_PATH]
    files += (krb5.config or identity.DEFAULT_KRB5_CONFIG).split(":")
    if request.is_machine:
        files += [krb5.keytab.removeprefix("FILE:"), krb5.ccache.removeprefix("FILE:") or "/tmp/krb5cc_0"]  # noqa: S108
    else:
        # The default cache as the user's worker has it: theirs to say, so root looks only
        # where no file system of a user's can hold it up.
        said, usual = failure.cache, f"/tmp/krb5cc_{request.uid}"  # noqa: S108
        folders = ("/tmp/", f"/run/user/{request.uid}/")  # noqa: S108
        files.append(said if said.startswith(folders) and "/../" not in said else usual)
    return [file for file in files if file.startswith("/") and file.isprintable() and len(file) < 200]


def _write(name: str, lines: Sequence[str]) -> None:
    """Write the note, as a whole or not at all; where none can be kept nothing is lost."""
    if not name:
        return
    try:
        folder = arguments.NOTES
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            pass
        status = os.lstat(folder)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            return
        if not os.path.exists(name) and not _has_room(folder):
            return
        new = f"{name}.{os.getpid()}"
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, os.fsencode("\n".join(lines)))
        finally:
            os.close(descriptor)
        os.rename(new, name)
    except OSError:
        pass


def _has_room(folder: str) -> bool:
    """Whether there may be one more note; takes old ones away where there are many.  A user
    with subordinate uids (subuid(5)) could fill /run with notes otherwise."""
    names = [each for each in os.listdir(folder) if each.startswith("failed-")]
    if len(names) < NOTES_LIMIT:
        return True
    old = known_failure.now() - LONGEST_LIFE
    gone = 0
    for each in names:
        try:
            until = float(known_failure.read(f"{folder}/{each}")[0].split(" ")[1])
        except (IndexError, ValueError):
            until = 0.0  # damaged, or taken away just now
        if until < old:
            os.unlink(f"{folder}/{each}")
            gone += 1
    return gone > 0
