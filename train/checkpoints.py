"""Checkpoints of a training: folders that are complete or do not count, sharded weights and optimizer states.

They are folders `checkpoint-STEP`, filled elsewhere and renamed when every process is done.
"""

import os
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from accelerate import PartialState
from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled

from mllm.files import UNFINISHED, errors_that_name, read_json
from train.recipe import RECIPES

UNSHARDED, ZERO_2, ZERO_3 = "plain data parallel", "ZeRO-2", "ZeRO-3"
UNIVERSAL = "latest_universal"  # the file that DeepSpeed's conversion writes last


def checkpoints_in(output: Path) -> list[Path]:
    """The checkpoints of a run, the oldest first."""
    steps = {path: path.name.removeprefix("checkpoint-") for path in output.glob("checkpoint-*") if path.is_dir()}
    return sorted((path for path, step in steps.items() if step.isdecimal()), key=lambda path: int(steps[path]))


def newest_checkpoint(output: Path) -> Path | None:
    return next(reversed(checkpoints_in(output)), None)


def is_finished(newest: Path | None, num_steps: int) -> bool:
    """Whether a run has made its last step, by its newest checkpoint."""
    return newest is not None and int(newest.name.removeprefix("checkpoint-")) >= num_steps


def resumes(checkpoint: Path, num_steps: int) -> str:
    """What the log says when a run resumes. A finished one does nothing, however its recipe has changed."""
    if not is_finished(checkpoint, num_steps):
        return f"resuming from {checkpoint}"
    return f"{checkpoint.parent} is finished: set more steps to continue it, or another output to train anew"


def write_checkpoint(output: Path, step: int, write: Callable[[Path], None], *, state: PartialState) -> None:
    """Let `write` fill a new folder, and rename it when it is complete. `state`: of the processes that train together;
    all of them call this and may write into the folder."""
    final, unfinished = output / f"checkpoint-{step}", output / UNFINISHED / f"checkpoint-{step}"
    if state.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    state.wait_for_everyone()
    try:
        with errors_that_name(final):
            write(unfinished)
    except OSError:  # leave the disk no fuller than it was
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    state.wait_for_everyone()
    if state.is_main_process:
        shutil.rmtree(final, ignore_errors=True)
        os.replace(unfinished, final)
    state.wait_for_everyone()


@contextmanager
def gathered(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Within, parameters that ZeRO-3 partitions are complete; changes by the first process are kept."""
    if not is_deepspeed_zero3_enabled():
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0):
        yield


def partition(modules: Iterable[nn.Module]) -> None:
    """Partition parameters that are complete on every process again (those of resized layers are)."""
    if not is_deepspeed_zero3_enabled():
        return
    import deepspeed
    from transformers.integrations.deepspeed import deepspeed_config

    for module in modules:
        deepspeed.zero.Init(module=module, config_dict_or_path=deepspeed_config())


def num_partitions(checkpoint: Path) -> int:
    """Into how many partitions DeepSpeed split the optimizer states; 0 without DeepSpeed."""
    return len(list(checkpoint.glob("global_step*/*_optim_states.pt")))


def check_sharding(checkpoint: Path, sharding: str) -> None:
    """Refuse a checkpoint of another sharding, whose optimizer states would not be found."""
    is_zero3 = any(checkpoint.glob("global_step*/zero_pp_rank_*_model_states.pt"))
    found = (ZERO_3 if is_zero3 else ZERO_2) if num_partitions(checkpoint) else UNSHARDED
    if found != sharding:
        raise ValueError(
            f"{checkpoint} must be written under {sharding}, as the recipe asks, got {found}; "
            "set trainer.deepspeed as it was, or choose another output"
        )


def needs_resharding(checkpoint: Path | None, processes: int) -> bool:
    """Whether DeepSpeed wrote a checkpoint with another number of processes."""
    return checkpoint is not None and num_partitions(checkpoint) not in (0, processes)


def write_universal(checkpoint: Path) -> None:
    """Add DeepSpeed's universal layout, which any number of processes can load, to a checkpoint. By DeepSpeed's own
    converter; one process does this for all."""
    from deepspeed.checkpoint import ds_to_universal

    if (checkpoint / UNIVERSAL).is_file():
        return
    (partitions,) = {path.parent for path in checkpoint.glob("global_step*/*_optim_states.pt")}
    universal = checkpoint / f"{partitions.name}_universal"
    shutil.rmtree(universal, ignore_errors=True)  # of a run that was killed during the conversion
    folders = {"input_folder": str(partitions), "output_folder": str(universal), "keep_temp_folder": False}
    workers = {"num_extract_workers": 1, "num_merge_workers": 1}
    ds_to_universal.main(Namespace(**folders, **workers, strict=True, inject_missing_state=True))


def deepspeed_settings(config: str | Path | dict[str, Any], *, universal: bool) -> dict[str, Any]:
    """A DeepSpeed configuration with what a run of ours relies on. `config`: or its file, or the name of one of
    train/recipes/ (earlier versions kept those in scripts/). `universal`: load the universal layout."""
    if not isinstance(config, dict):
        files = Path(config), RECIPES / f"{Path(config).name.removesuffix('.json')}.json"
        found = next((file for file in files if file.is_file()), None)
        if found is None:
            names = ", ".join(sorted(file.stem for file in RECIPES.glob("*.json")))
            raise FileNotFoundError(f"trainer.deepspeed must be a file or one of {names}, got {config}; correct it")
        config = cast(dict[str, Any], read_json(found))
    settings = {**config}
    if "bf16" in settings:  # before 0.19 it does not look at gradients in bfloat16, by which a bad step is skipped
        settings["bf16"] = {**settings["bf16"], "check_grad_overflow": True}
    if universal:
        settings["checkpoint"] = {**settings.get("checkpoint", {}), "load_universal": True}
    return settings
