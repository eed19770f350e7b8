"""Where a model is: the bundled one, a folder, or a folder fetched from the Hugging Face hub.

In: what a person typed after --model. Out: a folder that holds a model. Loads nothing.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

BUNDLED = Path(__file__).resolve().parents[1] / "assets" / "tiny"
CONFIG_FILE = "config.json"
MODEL_TYPES = ("unified_mllm", "mini_gemini")
"""The kinds of folder that this toolkit runs, its own and the released one; written out because the config class costs
seconds to import."""
IMAGE_TOKENIZER = "image_tokenizer"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""owner/name; a path with one separator looks the same, so a folder is looked for first."""


def find_model_folder(name: str | Path | None) -> Path:
    """The folder of a model; None is the bundled one."""
    folder = BUNDLED if name is None else Path(name).expanduser()
    if not folder.exists() and HUB_ID.fullmatch(str(name)):
        folder = fetch_from_hub(str(name))
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no model folder {folder}; give a folder that holds a model")
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(
            f"the folder {folder} holds no model: found no {CONFIG_FILE} in it; give a folder that holds a model"
        )
    check_kind(folder / CONFIG_FILE)
    return folder


def check_kind(path: Path) -> None:
    """Refuse a config that cannot be read, or that of another kind of model."""
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is no config: {error}; restore the file") from error
    if kind not in MODEL_TYPES:
        known = " or ".join(map(repr, MODEL_TYPES))
        raise ValueError(f"{path.parent} holds another kind of model: found {kind!r}; give a model of type {known}")


def fetch_from_hub(name: str) -> Path:
    """A local copy of a model on the hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(name))
    except (LocalEntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled, ConnectionError) as error:
        raise FileNotFoundError(
            f"there is no model {name!r}: found no such folder, and the hub cannot be asked or does not have it "
            f"({type(error).__name__}); give a folder, or go online"
        ) from error
