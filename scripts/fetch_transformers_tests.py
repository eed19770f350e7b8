"""Fetch transformers' own tests of models and processors, which its wheel does not contain.

In: the version of transformers that is installed. Out: a package `transformers_tests` with the modules at the top of
the tests/ folder of its source distribution, inside a cache folder, whose path is printed. The source distribution
lacks the folders below tests/, so the mixins that are imported from there (generation, export) are empty classes here.

    python scripts/fetch_transformers_tests.py [FOLDER]
"""

import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

PACKAGE = "transformers_tests"
ABSENT = {
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "fetch_hub_objects_for_ci.py": "def url_to_local_path(url, *args, **kwargs):\n    return url\n",
}
"""What the tests import that no distribution has, by its path in the package (the last: on the module path)."""


def default_folder() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return cache / "mllm" / f"transformers-{version('transformers')}-tests"


def fetch(folder: Path) -> Path:
    """Download and unpack what is not there yet; the folder to put on the module path."""
    package = folder / PACKAGE
    if (package / "test_modeling_common.py").is_file():
        return folder
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    name = f"transformers=={version('transformers')}"
    with tempfile.TemporaryDirectory() as temporary:
        source = ["--no-deps", "--no-build-isolation", "--no-binary", "transformers"]
        subprocess.run([*pip, "download", name, *source, "-d", temporary], check=True)
        subprocess.run([*pip, "install", "--target", str(folder), "--no-deps", "parameterized"], check=True)
        (archive,) = Path(temporary).glob("transformers-*.tar.gz")
        for path, text in ABSENT.items():
            target = (package if "/" in path else folder) / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
            (target.parent / "__init__.py").touch()
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                parts = Path(member.name).parts
                if len(parts) == 3 and parts[1] == "tests" and member.isfile():
                    (package / parts[2]).write_bytes(tar.extractfile(member).read())
    (package / "__init__.py").touch()
    return folder


if __name__ == "__main__":
    print(fetch(Path(sys.argv[1]) if len(sys.argv) > 1 else default_folder()))
