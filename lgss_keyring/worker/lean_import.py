"""Importing parts of a package of extension modules without running its ``__init__``.

``import gssapi`` runs 28 extension modules and lets ctypes search for Windows libraries.  That
takes 41 ms, and what a context needs takes 28 ms (medians of 30 whole processes).  ``import
krb5`` takes 18 ms, and what we use of it 11 ms.  An upcall's caller waits for
these, so the package objects are made here without running their ``__init__``, and only
the modules in use are imported below them.

There are two alternatives, and both are worse: to import the submodules in the ordinary way
runs every ``__init__`` all the same, and ctypes over the C libraries would be a second
binding to maintain.  This works because the modules import each other by full name, as
Cython compiles them.  A package that was imported before (by tests, tools, lgssd) is used as
it is.  If a future release breaks the assumption, the package is imported in the ordinary way.
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
