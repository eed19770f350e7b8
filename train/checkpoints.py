"""Checkpoints of a training: folders that are complete or do not count, averaged weights, sharded weights and states.

They are folders `checkpoint-STEP`, filled elsewhere and renamed when every process is done.
"""

import os
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import PreTrainedModel, TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_utils import get_last_checkpoint

from mllm.files import UNFINISHED, errors_that_name, read_json
from train.recipe import RECIPES

AVERAGE = "average.safetensors"
UNSHARDED, ZERO_2, ZERO_3 = "plain data parallel", "ZeRO-2", "ZeRO-3"
UNIVERSAL = "latest_universal"  # the file that DeepSpeed's conversion writes last


def newest_checkpoint(output: Path) -> Path | None:
    found = get_last_checkpoint(output) if output.is_dir() else None
    return Path(found) if found else None


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


class WeightAverage(TrainerCallback):
    """An exponential moving average of the trainable weights, updated after every step and saved in checkpoints. It is
    float32 also for bfloat16 weights (DeepSpeed's), where an update by 1 - decay would be rounded away."""

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        trained = nn.ParameterList(self.trainable.values())
        self.average = AveragedModel(trained, multi_avg_fn=get_ema_multi_avg_fn(decay)).float()

    @property
    def weights(self) -> dict[str, Tensor]:
        return {name: kept.data for name, kept in zip(self.trainable, self.average.module.parameters(), strict=True)}

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.average.update_parameters(nn.ParameterList([each.detach().float() for each in self.trainable.values()]))

    def save(self, folder: Path) -> None:
        save_file({**self.weights, "num_averaged": self.average.n_averaged}, folder / AVERAGE)

    def load(self, folder: Path) -> None:
        stored = load_file(folder / AVERAGE)
        for name, kept in {**self.weights, "num_averaged": self.average.n_averaged}.items():
            kept.copy_(stored[name])

    @torch.no_grad()
    def copy_to_model(self) -> None:
        for name, kept in self.weights.items():
            self.trainable[name].copy_(kept)


@contextmanager
def inference_model(model: nn.Module, backbone: PreTrainedModel, average: WeightAverage | None) -> Iterator[None]:
    """Within, `model` computes what a model that is saved now and loaded again computes. It has the averaged weights
    (its own are kept in the CPU's memory), in the precision of frozen ones (with adapters: float32 beside bfloat16),
    the attention of loaded models, and a `backbone` that is not compiled (it would compile again for every length of a
    dialogue)."""
    attention, compiled = backbone.config._attn_implementation, backbone._compiled_call_impl
    weights = {name: weight for name, weight in model.named_parameters() if weight.is_floating_point()}
    own, averaged = {name: weight.data for name, weight in weights.items()}, average.weights if average else {}
    kept = {name: own[name].to("cpu", copy=True) for name in averaged}
    frozen = [weight.dtype for weight in weights.values() if not weight.requires_grad]
    dtype = next(iter(frozen or [data.dtype for data in own.values()]))
    backbone.set_attn_implementation("sdpa")
    backbone._compiled_call_impl = None
    try:
        for name, data in averaged.items():
            own[name].copy_(data)
        for name, data in own.items():
            weights[name].data = data.to(dtype)
        yield
    finally:
        for name, data in own.items():
            weights[name].data = data.copy_(kept[name]) if name in kept else data
        backbone.set_attn_implementation(attention)
        backbone._compiled_call_impl = compiled


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
    """A DeepSpeed configuration with what a run of ours relies on.

    Args:
        config: or its file, or the name of one of train/recipes/; earlier versions kept those in scripts/.
        universal: load the universal layout.
    """
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
