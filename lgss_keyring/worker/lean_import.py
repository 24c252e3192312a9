"""Importing parts of a package of extension modules without running its ``__init__``.

``import gssapi`` runs 28 extension modules and ctypes with a search for Windows
libraries: 41 ms here, of which a context needs 28 (measured as whole processes, medians
of 30).  ``import krb5`` costs 18 ms, what we use of it 11.  An upcall's caller waits for
these, so the package objects are made here without running their ``__init__``, and only
the modules in use are imported below them.

Alternatives weighed: importing the submodules plainly runs every ``__init__`` all the
same; ctypes over the C libraries would be a second binding to maintain.  What it rests on
is that the modules import each other by full name, which is how Cython compiles them;
where the package was imported before (tests, tools, lgssd) that one is used, and if a
future release breaks the assumption, a plain import is the fall-back.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import PathFinder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def load(package: str, modules: Sequence[str]) -> None:
    """Import ``modules`` of ``package`` (dotted, in this order), or all of it."""
    top = package.partition(".")[0]
    if top in sys.modules:
        return
    try:
        path = None
        name = ""
        for part in package.split("."):
            name = f"{name}.{part}" if name else part
            path = _bare_package(name, path)
        for module in modules:
            importlib.import_module(f"{package}.{module}")
    except Exception:
        for loaded in [loaded for loaded in sys.modules if loaded.partition(".")[0] == top]:
            del sys.modules[loaded]
        importlib.import_module(top)


def _bare_package(name: str, path: list[str] | None) -> list[str]:
    spec = PathFinder.find_spec(name, path)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError(f"no package {name}")
    # By hand: importlib.util, which could do this, costs 1.3 ms.
    package = sys.modules[name] = type(sys)(name)
    package.__spec__ = spec
    package.__path__ = list(spec.submodule_search_locations)
    return package.__path__
