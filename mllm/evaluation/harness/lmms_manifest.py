"""What lmms-eval finds in its entry-point group `lmms_eval.models`: the name of our model and where its class is.

`python -m lmms_eval --model mllm_toolkit --model_args pretrained=FOLDER --tasks mme`; no fork needed.
"""

from __future__ import annotations

from typing import Any

MODEL_ID = "mllm_toolkit"
CHAT_CLASS = "mllm.evaluation.harness.lmms_chat.MLLMToolkit"


def manifest() -> Any:
    """Called by lmms-eval, with its own class."""
    try:
        from lmms_eval.models.registry_v2 import ModelManifest
    except ImportError as error:
        raise ImportError(
            f"the plug-in is for lmms-eval: found none ({error}); `pip install 'mllm-toolkit[eval-harness]'` in an "
            "environment of its own"
        ) from error
    return ModelManifest(model_id=MODEL_ID, chat_class_path=CHAT_CLASS)
