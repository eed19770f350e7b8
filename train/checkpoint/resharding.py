"""Go on from a DeepSpeed checkpoint with another number of processes.

In: a checkpoint whose optimizer states are cut for as many processes as wrote it. Out: the same joined, in DeepSpeed's
universal layout beside the parts, and the setting that makes DeepSpeed read it. The joined copy is deleted with its
checkpoint.
"""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

PLAIN, ZERO_2, ZERO_3 = "plain data parallel", "ZeRO-2", "ZeRO-3"
JOINED = "latest_universal"
"""The file that DeepSpeed writes last."""


def sharding_of(checkpoint: Path) -> str:
    """What a checkpoint was written under."""
    if not num_parts(checkpoint):
        return PLAIN
    return ZERO_3 if any(checkpoint.glob("global_step*/zero_pp_rank_*_model_states.pt")) else ZERO_2


def num_parts(checkpoint: Path) -> int:
    """For how many processes the optimizer states are cut; 0 where DeepSpeed did not write them."""
    return len(list(checkpoint.glob("global_step*/*_optim_states.pt")))


def check_sharding_is(sharding: str, checkpoint: Path) -> None:
    """Refuse a checkpoint of another sharding, whose optimizer states would not be found.

    Raises:
        ValueError: it was written under another.
    """
    found = sharding_of(checkpoint)
    if found != sharding:
        raise ValueError(
            f"{checkpoint} was written under {found}, and the recipe now asks for {sharding}; set trainer.deepspeed as "
            "before, or name another output and go on from the weights alone (start_from)"
        )


def needs_joining(checkpoint: Path | None, processes: int) -> bool:
    """Whether DeepSpeed cut a checkpoint for another number of processes."""
    return checkpoint is not None and num_parts(checkpoint) not in (0, processes)


def reads_joined(deepspeed: str | dict[str, Any]) -> dict[str, Any]:
    """A DeepSpeed configuration (or its file) that reads the joined copy."""
    config = deepspeed if isinstance(deepspeed, dict) else json.loads(Path(deepspeed).read_text(encoding="utf-8"))
    return {**config, "checkpoint": {**config.get("checkpoint", {}), "load_universal": True}}


def join_parts(checkpoint: Path) -> None:
    """Write the joined copy, by DeepSpeed's own converter; one process does this for all."""
    from deepspeed.checkpoint import ds_to_universal

    if (checkpoint / JOINED).is_file():
        return
    (parts,) = {path.parent for path in checkpoint.glob("global_step*/*_optim_states.pt")}
    joined = checkpoint / f"{parts.name}_universal"
    shutil.rmtree(joined, ignore_errors=True)  # of a run that was killed while joining
    options = Namespace(
        input_folder=str(parts),
        output_folder=str(joined),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    ds_to_universal.main(options)
