"""Finding the folder that keeps this process from a file."""

from __future__ import annotations

import os


def closed_folder(path: str) -> str:
    """The first folder above ``path`` that this process may not search; empty if there is none."""
    folder = ""
    for part in os.path.dirname(path).split("/")[1:]:
        folder = f"{folder}/{part}"
        if not os.access(folder, os.X_OK) and os.path.lexists(folder):
            return folder
    return ""
