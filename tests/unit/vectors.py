"""The recorded facts in tests/vectors, whose README says where each comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VECTORS = Path(__file__).parents[1] / "vectors"


def load(name: str) -> Any:
    """The vectors in file ``name``."""
    return json.loads((VECTORS / name).read_text())
