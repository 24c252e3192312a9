"""What a good answer is: a context that the acceptor has, too."""

from __future__ import annotations

from lgss_keyring.formats import payload
from lgss_keyring.formats.crypto import tokens
from lgss_keyring.formats.payload import ContextPayload, Krb5Context
from tests.support.requestor import Answer
from tests.support.site import Site


def established(answer: Answer) -> Krb5Context:
    assert answer.error == 0 and answer.read_error == 0, answer
    decoded = payload.unpack(answer.data)
    assert isinstance(decoded, ContextPayload), (decoded, answer)
    return Krb5Context.unpack(decoded.context)


def proven(site: Site, answer: Answer) -> None:
    """MICs made with one side's keys verify with the other's, both ways."""
    ours = established(answer)
    handle = payload.unpack(answer.data).handle.hex()  # type: ignore[union-attr]
    (theirs,) = [
        Krb5Context.unpack(bytes.fromhex(c["context"]))
        for c in site.acceptor.contexts()
        if c["handle"] == handle
    ]
    message = [b"a Lustre", b" message"]
    for maker, checker, acceptor in ((ours, theirs, False), (theirs, ours, True)):
        mic = tokens.make_mic(maker.kc, maker.enctype, message, sequence=maker.send_seq, acceptor=acceptor)
        assert (
            tokens.verify_mic(checker.kc, checker.enctype, message, mic, acceptor=acceptor) == maker.send_seq
        )
    assert (ours.ke, ours.ki) == (theirs.ke, theirs.ki)
