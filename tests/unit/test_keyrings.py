"""Keyrings where the kernel refuses."""

from __future__ import annotations

import errno

import pytest

from lgss_keyring.formats.errors import KeyOperationError
from lgss_keyring.system import keyrings


@pytest.fixture
def unlinked(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """What unlinking each keyring gives: an errno, or 0; those that were tried are taken out."""
    answers: dict[int, int] = {}

    def unlink(key: int, keyring: int) -> None:
        assert keyring == keyrings.SESSION
        number = answers.pop(key)
        if number:
            raise KeyOperationError("told so", errno=number)

    monkeypatch.setattr(keyrings, "unlink", unlink)
    return answers


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.ENOMEM, errno.EINVAL])
def test_keyring_that_stays_linked_is_an_error(unlinked: dict[int, int], number: int) -> None:
    """Else root would find the requestor's TGT in it, and take it for the machine's."""
    unlinked.update({7: 0, 8: number})
    with pytest.raises(KeyOperationError) as caught:
        keyrings.unlink_requestor((7, 0, 8))
    assert caught.value.errno == number


@pytest.mark.parametrize(
    "number", [errno.ENOENT, errno.EKEYREVOKED, errno.EKEYEXPIRED, errno.ENOKEY], ids=errno.errorcode.get
)
def test_keyring_that_is_out_of_reach_is_none(unlinked: dict[int, int], number: int) -> None:
    """And those behind it are unlinked."""
    unlinked.update({7: number, 8: 0})
    keyrings.unlink_requestor((7, 0, 8))
    assert not unlinked
