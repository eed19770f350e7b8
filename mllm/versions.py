"""Which versions of which tools computed something.

In: names of packages. Out: their versions, read without importing them.
"""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

TOOLKIT = "mllm-toolkit"
PACKAGES = (TOOLKIT, "torch", "transformers", "pillow", "numpy")
"""What every number depends on."""
ABSENT = "(not installed)"


def version_of(package: str) -> str:
    """The installed version; a source tree that is not installed has none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ABSENT


def tool_versions(*more: str) -> dict[str, str]:
    """Python and the packages, by name, and further ones that had a part in it."""
    return {"python": platform.python_version(), **{package: version_of(package) for package in (*PACKAGES, *more)}}
