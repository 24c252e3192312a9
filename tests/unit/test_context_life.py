"""The transitions of docs/sptlrpc.md, "The life of a context", without any policy."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable

import pytest

from lgss_keyring.formats.errors import LgssError
from lgss_keyring.formats.payload import ContextPayload
from lgss_keyring.sptlrpc import Context, ContextError, Flavor, State, Target, parse_flavor

from .sessions import sides

ANSWER = ContextPayload(8, b"handle", b"context")


class Owner:
    """All that a context needs to know of others; ``calls`` is what it has called."""

    def __init__(self, key_error: int = 0) -> None:
        self.target = Target(1, 1, "target")
        self.flavor: Flavor = parse_flavor("gssnull")
        self.root_flags = "r"
        self.calls: list[str] = []
        self.key_error = key_error

    @property
    def policy(self) -> Owner:
        return self

    def uncache(self, context: Context) -> None:
        if context.leave_cache():
            self.calls.append("uncache")
            context.retired()

    def check(self, context: Context) -> int:
        return self.key_error

    def destroy(self, context: Context) -> None:
        self.calls.append("destroy")

    def display(self, context: Context) -> str:
        return "nothing"


def made(owner: Owner) -> Context:
    """A new context, with its caller's reference and the cache's."""
    context = Context(owner, 5).get()
    context.enter_cache()
    context.instantiated(77, (88,))
    return context


def fail(context: Context) -> None:
    context.failed(ContextError("it failed", errno=errno.EIO))


def establish(context: Context) -> None:
    context.established(ANSWER)


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ([], State.NEW),
        ([establish], State.UP_TO_DATE),
        ([fail], State.ERROR),
        ([Context.die], State.DEAD),
        ([establish, Context.die], State.DEAD),
        ([fail, Context.die], State.DEAD),
        # The first decides.
        ([fail, establish], State.ERROR),
        ([establish, fail], State.UP_TO_DATE),
        ([Context.die, establish], State.DEAD),
        ([Context.die, fail], State.DEAD),
    ],
)
def test_transitions(events: list[Callable[[Context], None]], state: State) -> None:
    owner = Owner()
    context = made(owner)
    for event in events:
        event(context)
    usable = state in (State.NEW, State.UP_TO_DATE)
    assert context.state is state and context.cached == usable and context.validate() == usable
    # It leaves the cache once, and takes the cache's reference along.
    assert owner.calls == ([] if usable else ["uncache"])
    assert context.references == (2 if usable else 1)
    assert (context.key, context.keyrings, context.flags) == (77, (88,), "")
    context.put()
    assert owner.calls == ([] if usable else ["uncache", "destroy"])


def test_first_error_stays() -> None:
    context = made(Owner())
    fail(context)
    context.die()
    with pytest.raises(LgssError, match="it failed"):
        context.refresh()


@pytest.mark.parametrize("events", [[], [establish]])
def test_context_whose_key_has_gone_is_dead(events: list[Callable[[Context], None]]) -> None:
    context = made(Owner(key_error=errno.EKEYREVOKED))
    for event in events:
        event(context)
    assert not context.validate() and context.state is State.DEAD
    assert context.error is not None and context.error.errno == errno.EKEYREVOKED


def test_end_of_life_only_comes_nearer() -> None:
    context = made(Owner())
    soon = int(time.time()) + 100
    assert not context.end_by(soon)  # it is new
    establish(context)
    assert context.endtime == soon and not context.cached
    assert context.end_by(soon + 100) and context.endtime == soon
    assert context.end_by(0) and not context.validate() and context.state is State.DEAD


def test_key_that_comes_after_the_failure_is_known() -> None:
    """The policy has to end it."""
    context = Context(Owner(), 5).get()
    fail(context)
    context.instantiated(77)
    assert context.state is State.ERROR and context.key == 77 and context.wait_started(0)


def test_reverse_context_is_up_to_date_from_the_start() -> None:
    owner = Owner()
    owner.flavor = parse_flavor("krb5i")
    server, client = sides("krb5i")
    context = Context.reverse_of(owner, server, b"handle", int(time.time()) + 100).get()
    assert context.reverse and not context.cached and not context.key
    assert context.refresh(0) is context and context.refresh_later().done()
    client.reversed().verify([b"call"], context.sign([b"call"]))
    assert "reverse of handle 68616e646c65" in context.display()
    context.die()
    assert owner.calls == [] and not context.validate()
