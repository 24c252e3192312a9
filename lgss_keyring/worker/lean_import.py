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

Other code of the same process may import the package after us, and finds ours in ``sys.modules``.
The first attribute that ours lacks runs the ``__init__`` that was left out.  What a module has
decided when it was loaded stays as it is: gssapi's RequirementFlag then lacks the three flags of
DCE, which only an ``__init__`` that runs first can add.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import PathFinder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType


def load(package: str, modules: Sequence[str]) -> None:
    """Import ``modules`` of ``package`` (dotted, in this order), or all of it."""
    top = package.partition(".")[0]
    if top in sys.modules:
        return
    try:
        path = None
        name = ""
        bare = []
        for part in package.split("."):
            name = f"{name}.{part}" if name else part
            bare.append(_bare_package(name, path))
            path = bare[-1].__path__
        for module in modules:
            importlib.import_module(f"{package}.{module}")
        # Not before: an import looks for a submodule among its package's attributes first.
        for made in bare:
            _complete_on_demand(made)
    except Exception:
        for loaded in [loaded for loaded in sys.modules if loaded.partition(".")[0] == top]:
            del sys.modules[loaded]
        importlib.import_module(top)


def _bare_package(name: str, path: Sequence[str] | None) -> ModuleType:
    spec = PathFinder.find_spec(name, path)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError(f"no package {name}")
    # By hand: importlib.util, which could do this, costs 1.3 ms.
    package = sys.modules[name] = type(sys)(name)
    package.__spec__ = spec
    package.__path__ = list(spec.submodule_search_locations)
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, package)
    return package


def _complete_on_demand(package: ModuleType) -> None:
    """Let ``package``'s ``__init__`` run when an attribute is asked for that it lacks (PEP 562)."""

    def complete(attribute: str) -> object:
        # Tools that look through sys.modules ask for these; none but __all__ comes from an __init__.
        if attribute.startswith("__") and attribute != "__all__":
            raise AttributeError(attribute)
        del package.__dict__["__getattr__"]
        importlib.reload(package)
        return getattr(package, attribute)

    package.__dict__["__getattr__"] = complete
