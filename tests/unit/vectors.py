"""The shared vectors; a test that needs them fails where they are missing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

SHARED = Path(os.environ.get("LGSS_SHARED") or Path(__file__).parents[3] / "shared")


def load(name: str) -> Any:
    """The vectors in file ``name``."""
    return json.loads((SHARED / "vectors" / name).read_text())
