"""Train the unified model: a thin subclass of `transformers.Trainer`.

What is added to the library's trainer: the loss is weighted by tokens and codes over all ranks and accumulation
steps, its parts are logged (image loss per codebook, positions per second, padding share), the optimizer comes from
the recipe, and an average of the weights is kept. Batches come whole from the data set: item b of the data set is
batch b, so skipping to a batch costs nothing and a resumed run sees exactly what an uninterrupted one sees.
"""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer, TrainingArguments

from mllm.loss import count_items
from mllm.model import MLLMForConditionalGeneration
from train.data.world_sequences import WorldBatches
from train.metrics_log import MetricsLog
from train.mllm_recipe import MLLMRecipe
from train.optimizers import build_optimizer
from train.weight_average import WeightAverage

OUTSIDE_MUON = ("embed_tokens", "lm_head", "codebooks", "linear_head", "output", "places")
"""Embeddings and output layers, by parts of their names."""


class MLLMTrainer(Trainer):
    """`transformers.Trainer` over packed batches."""

    def __init__(
        self,
        model: MLLMForConditionalGeneration,
        *,
        recipe: MLLMRecipe,
        arguments: TrainingArguments,
        batches: WorldBatches,
    ) -> None:
        self.recipe, self.batches = recipe, batches
        self.average = WeightAverage(model, decay=recipe.ema_decay) if recipe.ema_decay else None
        self.sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
        self.num_micro_steps = 0
        self.last_log = time.monotonic()
        super().__init__(
            model,
            args=arguments,
            train_dataset=batches,
            data_collator=_only_item,
            callbacks=[self.average] if self.average else None,
        )
        self.model_accepts_loss_kwargs = True
        self.metrics_log: MetricsLog | None = None

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> SequentialSampler:
        return SequentialSampler(range(len(self.batches)))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            learner = model if model is not None else self.model
            assert learner is not None, "a trainer has a model"
            self.optimizer = build_optimizer(
                self.recipe.optimizer, learner.named_parameters(), outside_muon=OUTSIDE_MUON
            )
        return self.optimizer

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor | None:
        """Supervised text tokens (by their weight) plus supervised codes, over all ranks and accumulation steps."""
        if not batch_samples:
            return None
        config = self.accelerator.unwrap_model(self.model).config
        counts = [
            count_items(
                batch["labels"],
                batch["code_targets"],
                num_codebooks=config.num_codebooks,
                text_weight=config.text_loss_weight,
            )
            for batch in batch_samples
        ]
        count = torch.stack(counts).sum()
        count = count.to(device)
        return self.accelerator.gather(count).sum() if self.args.world_size > 1 else count

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        output = model(**inputs, num_items_in_batch=num_items_in_batch)
        parts = output.loss_parts
        with torch.no_grad():
            self._add("text_loss", parts.text)
            self._add("image_loss", parts.image)
            self._add("z_loss", parts.z)
            self._add("image_loss_per_codebook", parts.image_per_codebook_K)
            self._add("positions", (inputs["segment_ids"] > 0).sum())
            self._add("padding_share", (inputs["segment_ids"] == 0).float().mean())
        self.num_micro_steps += 1
        # Trainer averages gradients over ranks; the count above is already over all of them.
        loss = output.loss * (self.accelerator.num_processes if num_items_in_batch is not None else 1)
        return (loss, output) if return_outputs else loss

    def _add(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value.detach().float().cpu()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.num_micro_steps:
            seconds = time.monotonic() - self.last_log
            values: dict[str, float | list[float]] = {**logs}
            values["positions_per_second"] = self.sums.pop("positions").item() / seconds
            values |= {name: (total / self.num_micro_steps).tolist() for name, total in self.sums.items()}
            self.sums.clear()
            self.num_micro_steps, self.last_log = 0, time.monotonic()
            if self.is_world_process_zero():
                self._metrics_log().write(self.state.global_step, values)
            logs |= {name: value for name, value in values.items() if isinstance(value, float)}
        super().log(logs, start_time)

    def _metrics_log(self) -> MetricsLog:
        if self.metrics_log is None:
            path = self.recipe.output / "metrics.jsonl"
            self.metrics_log = MetricsLog(path, resumed_step=self.state.global_step - 1)
        return self.metrics_log

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.average and output_dir:
            self.average.save(Path(output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.average:
            self.average.load(Path(resume_from_checkpoint))


def _only_item(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A batch comes whole from the data set, so a loader's batch has one item."""
    assert len(items) == 1, f"the loader must take one packed batch at a time, got {len(items)}"
    return items[0]
