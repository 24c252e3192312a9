"""docs/sptlrpc.md agrees with the library, and so do the lists of policies."""

from __future__ import annotations

import ast
import pydoc
import re

import pytest

from lgss_keyring import sptlrpc
from lgss_keyring.formats import config
from lgss_keyring.formats.errors import LgssError
from lgss_keyring.sptlrpc import registry
from lgss_keyring.sptlrpc.policy import Policy
from tests.support.stage import CHECKOUT

DOCUMENT = (CHECKOUT / "docs/sptlrpc.md").read_text()


def documented_options(policy: str) -> dict[str, object]:
    """Names and defaults in the table behind the paragraph on ``policy``."""
    _, _, behind = DOCUMENT.partition(f"Policy `{policy}`:")
    table = re.split(r"\n\n", behind)[1]
    return {
        name: ast.literal_eval(value) for name, value in re.findall(r"^\| `(\w+)` \| `(.*?)` ", table, re.M)
    }


@pytest.mark.parametrize("policy", sptlrpc.POLICIES)
def test_every_option_is_documented_with_its_default(policy: str) -> None:
    options = sptlrpc.POLICIES[policy]().options()
    assert options and documented_options(policy) == options


def test_policies_of_the_configuration_are_those_of_the_registry() -> None:
    assert config.Sptlrpc.allowed["policy"] == tuple(sptlrpc.POLICIES)


@pytest.mark.parametrize("policy", sptlrpc.POLICIES)
def test_policies_can_be_made_and_have_their_names(policy: str) -> None:
    with sptlrpc.create_policy(policy) as made:
        assert made.name == policy


def test_help_explains_every_field_of_a_target() -> None:
    text = pydoc.plain(pydoc.render_doc(sptlrpc.Target))
    signature, description = text.split("One target of a client")
    for field in (
        "nid: int",
        "service: int",
        "obd_name: str",
        "self_nid: int = 0",
        "client_uuid: str = 'client'",
    ):
        assert field in signature
    for name in sptlrpc.Target._fields:
        assert f"``{name}``: " in description


def test_every_method_of_the_life_of_a_context_exists() -> None:
    _, _, life = DOCUMENT.partition("## The life of a context")
    named = re.findall(r"`(\w+)\(", re.search(r"\| method of .*?\n\n", life, re.S)[0])  # type: ignore[index]
    assert len(named) >= 10
    for name in named:
        assert callable(getattr(sptlrpc.Context, name))


def test_an_unknown_option_is_named_and_the_known_ones_listed() -> None:
    with pytest.raises(LgssError, match="does not have these options: prefx; it has: prefix, ") as caught:
        sptlrpc.create_policy("keyring", prefx="lgss:", upcall_timeout=5.0)
    assert "upcall_timeout," not in caught.value.reason


def test_a_defect_of_a_constructor_is_not_taken_for_an_unknown_option(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Broken(sptlrpc.POLICIES["keyring"]()):  # type: ignore[misc]
        def __init__(self, prefix: str = "") -> None:
            len(5)  # type: ignore[arg-type]

    def broken() -> type[Policy]:
        return Broken

    monkeypatch.setattr(registry, "POLICIES", {"broken": broken})
    with pytest.raises(TypeError, match="has no len"):
        sptlrpc.create_policy("broken", prefix="lgss:")


@pytest.mark.parametrize(
    "name", ["state", "endtime", "key", "keyrings", "cached", "session", "handle", "error"]
)
def test_a_contexts_fields_are_its_own(name: str) -> None:
    context = object.__new__(sptlrpc.Context)
    with pytest.raises(AttributeError, match="has no setter"):
        setattr(context, name, None)
