"""Versions are those of the imported packages; what is not installed is said to be absent."""

from __future__ import annotations

import platform

import numpy as np
import PIL
import torch
import transformers

from mllm.files import tool_versions, version_of


def test_versions_are_those_that_the_packages_say_themselves() -> None:
    found = tool_versions("no-such-package")
    expected = {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__}
    assert found == expected | {
        "python": platform.python_version(),
        "pillow": PIL.__version__,
        "mllm-toolkit": version_of("mllm-toolkit"),
        "no-such-package": "(not installed)",
    }
