"""The lean way into python-gssapi (lean_import), in processes of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

WORKS = (
    "import lgss_keyring.worker.gss_library as g\n"
    "name = g.names.import_name(b'lustre_mds@localhost', g.NameType.hostbased_service)\n"
    "assert g.names.display_name(name).name == b'lustre_mds@localhost'\n"
    "import os; os.environ['KRB5CCNAME'] = 'FILE:/nonexistent/cache'\n"
    "from lgss_keyring.formats.errors import CredentialError\n"
    "try: g.creds.acquire_cred(None, mechs=[g.KRB5], usage='initiate')\n"
    "except g.GSSError as error: said = g.explain(error, 'cannot', CredentialError)\n"
    "assert (said.kind, said.errno, said.major) == ('no-ticket', 126, 7 << 16), vars(said)\n"
    "assert '/nonexistent/cache' in said.reason, said.reason\n"
)


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout


def test_without_the_friendly_layer() -> None:
    loaded = run(WORKS + "import sys; print(*sys.modules)").split()
    assert "gssapi.raw.sec_contexts" in loaded
    assert not {"gssapi.creds", "gssapi.sec_contexts", "gssapi.raw.ext_dce"} & set(loaded)


def test_beside_the_friendly_layer() -> None:
    run("import gssapi\n" + WORKS + "assert gssapi.raw.names is g.names and gssapi.Name")


# Each with what it asks for first.
@pytest.mark.parametrize(
    "code",
    [
        "import gssapi; assert gssapi.raw.InquireContextResult and gssapi.SecurityContext",
        "import gssapi.raw as gss; assert gss.InquireContextResult and gss.names is g.names",
        "from gssapi.raw import ext_dce; from gssapi import *; assert SecurityContext",
        "from gssapi.raw import *; assert InquireContextResult",
        "import krb5; assert krb5.string_to_enctype and krb5.Principal is k.Principal",
        "from krb5 import *; assert string_to_enctype",
    ],
)
def test_before_the_friendly_layer(code: str) -> None:
    """Another part of the program may want what we have left out."""
    lean = "import lgss_keyring.worker.krb5_library as k, sys\nassert 'gssapi.creds' not in sys.modules\n"
    run(f"{WORKS}{lean}{code}\n{WORKS}")


def test_tools_that_look_through_the_modules_load_nothing() -> None:
    look = "import sys\nfor module in list(sys.modules.values()): hasattr(module, '__wrapped__')\n"
    run(f"{WORKS}{look}assert 'gssapi.creds' not in sys.modules")


@pytest.mark.parametrize("broken", ["raw.names", "raw.ext_krb5"])
def test_plain_import_where_the_lean_one_fails(broken: str) -> None:
    """As if a future release needed what its packages' __init__ does."""
    failing = (
        "import importlib, sys\n"
        "plain = importlib.import_module\n"
        "def lean(name):\n"
        f"    if name == 'gssapi.{broken}': raise ImportError('needs more')\n"
        "    return plain(name)\n"
        "importlib.import_module = lean\n"
    )
    run(failing + WORKS + "assert 'gssapi.creds' in sys.modules")
