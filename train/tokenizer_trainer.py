"""Train the image tokenizer (UniTok): reconstruction, vector quantisation, and pictures against captions.

In: a `TokenizerRecipe`. Out: a folder with checkpoints, `metrics.jsonl`, sheets of reconstructions and, at the end, the
tokenizer in `final/`. The picture of every step is a function of the step, so a resumed run equals an uninterrupted
one. Adversarial and perceptual losses are not here yet.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import get_scheduler

from tokenizer.config import UniTokConfig
from tokenizer.metrics import codebook_perplexity, codebook_usage, psnr
from tokenizer.model import UniTok
from train.checkpoints import checkpoints, step_of, write_checkpoint
from train.data.world_pictures import CaptionEncoder, WorldPictures
from train.metrics_log import MetricsLog, as_words
from train.picture_sheet import reconstruction_sheet
from train.precision import prefers_bfloat16
from train.recipe import as_yaml
from train.tokenizer_losses import contrastive_loss, reconstruction_loss
from train.tokenizer_recipe import TokenizerRecipe

logger = logging.getLogger(__name__)


class TokenizerTrainer:
    """Owns the model, its optimizer and the place in the schedule."""

    def __init__(self, recipe: TokenizerRecipe) -> None:
        set_seed(recipe.seed)
        self.recipe = recipe
        automatic = "bf16" if prefers_bfloat16() else "no"
        self.accelerator = Accelerator(mixed_precision=automatic if recipe.precision == "auto" else recipe.precision)
        config = UniTokConfig.from_dict({**getattr(UniTokConfig, recipe.preset)().to_dict(), **recipe.architecture})
        model = UniTok(config)
        if config.has_text_tower and not recipe.loss.contrastive:
            for parameter in model.contrastive_parameters():
                parameter.requires_grad_(False)
        self.pictures = WorldPictures(
            image_size=config.image_size, seed=recipe.seed, captions=build_captions(recipe, config)
        )
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in trained if p.ndim >= 2], "weight_decay": recipe.weight_decay},
                {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=recipe.learning_rate,
            betas=recipe.betas,
            fused=True,
        )
        scheduler = get_scheduler(
            "cosine_with_min_lr",
            optimizer,
            num_warmup_steps=recipe.warmup_steps,
            num_training_steps=recipe.steps,
            scheduler_specific_kwargs={"min_lr_rate": recipe.final_learning_rate},
        )
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.scheduler = scheduler
        self.average = AveragedModel(self.unwrapped, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay))
        self.accelerator.register_for_checkpointing(self.average, self.scheduler)
        self.step = 0

    @property
    def unwrapped(self) -> UniTok:
        return self.accelerator.unwrap_model(self.model)

    def train(self, *, stop_at: int | None = None) -> None:
        """Go on from the newest checkpoint up to the last step, or up to `stop_at`."""
        recipe = self.recipe
        recipe.output.mkdir(parents=True, exist_ok=True)
        (recipe.output / "recipe.yaml").write_text(as_yaml(recipe))
        self._resume()
        last = min(recipe.steps, stop_at or recipe.steps)
        log = MetricsLog(recipe.output / "metrics.jsonl", resumed_step=self.step)
        started, first = time.monotonic(), self.step
        progress = tqdm(total=recipe.steps, initial=self.step, desc="image tokenizer", mininterval=5)
        for batch in self._batches(self.step, last):
            values = self._training_step(batch["pixels"], batch.get("text_ids"))
            self.step += 1
            progress.update()
            if self.step % recipe.log_every == 0 or self.step == last:
                values["pictures_per_second"] = (self.step - first) * recipe.batch_size / (time.monotonic() - started)
                log.write(self.step, values)
                logger.info("step %d | %s", self.step, as_words(values))
            if self.step % recipe.sheet_every == 0 or self.step == last:
                self._write_sheet()
            if self.step % recipe.save_every == 0 or self.step == last:
                self._save()
        progress.close()
        if self.step == recipe.steps:
            self.shipped_model().save_pretrained(recipe.output / "final")

    def shipped_model(self) -> UniTok:
        """The average of the weights (or the last ones where no average is kept), in evaluation mode."""
        model = self.average.module if self.recipe.ema_decay else self.unwrapped
        assert isinstance(model, UniTok), "AveragedModel copies what it was given"
        return model.eval()

    def _batches(self, first: int, last: int) -> DataLoader:
        size, recipe = self.recipe.batch_size, self.recipe
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        share = range(first * size * world, last * size * world)
        indices = [index for index in share if index // size % world == rank]
        return DataLoader(
            self.pictures,
            batch_size=size,
            sampler=indices,
            num_workers=recipe.num_workers,
            prefetch_factor=4 if recipe.num_workers else None,
        )

    def _training_step(self, pixels_B3HW: Tensor, text_ids_BT: Tensor | None) -> dict[str, float | list[float]]:
        recipe, device = self.recipe, self.accelerator.device
        pixels_B3HW = pixels_B3HW.to(device).float().div(127.5).sub(1)
        self.model.train()
        is_continuous = self.step < recipe.codebooks.initialise_at
        with self.accelerator.autocast():
            output = self.model(
                pixels_B3HW,
                None if text_ids_BT is None else text_ids_BT.to(device),
                with_entropy=recipe.loss.entropy > 0,
            )
        parts = {
            "reconstruction": reconstruction_loss(
                output.reconstruction_B3HW,
                pixels_B3HW,
                l1_weight=recipe.loss.l1,
                l2_weight=recipe.loss.l2,
                detail_weight=recipe.loss.detail,
            ),
            "vq": (0.0 if is_continuous else recipe.loss.vq) * output.vq_loss,
        }
        if recipe.loss.entropy:
            parts["entropy"] = recipe.loss.entropy * output.entropy_loss
        if recipe.loss.contrastive:
            parts["contrastive"] = recipe.loss.contrastive * contrastive_loss(
                output.image_features, output.text_features, output.logit_scale
            )
        loss = torch.stack(list(parts.values())).sum()
        if not torch.isfinite(loss):
            raise ValueError(
                f"the loss became {loss.item()} at step {self.step}; the last good checkpoint is kept: "
                "lower the learning rate and start again from it"
            )
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), recipe.max_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        if recipe.loss.contrastive:
            self.unwrapped.clamp_logit_scale()
        self.average.update_parameters(self.unwrapped)
        revived = self._tend_codebooks(pixels_B3HW)
        if (self.step + 1) % recipe.log_every and self.step + 1 != recipe.steps:
            return {}
        values = {name: part.item() for name, part in parts.items()}
        values |= {"gradient_norm": norm.item(), "learning_rate": self.scheduler.get_last_lr()[0], "revived": revived}
        return values | self._measure(pixels_B3HW)

    @torch.no_grad()
    def _tend_codebooks(self, pixels_B3HW: Tensor) -> int:
        """Place the codebooks on the first features that mean something, later revive dead entries; how many."""
        schedule, model = self.recipe.codebooks, self.unwrapped
        with self.accelerator.autocast():
            if self.step + 1 == schedule.initialise_at:
                model.initialise_codes(pixels_B3HW)
            is_time = self.step % schedule.every == 0 and self.step > schedule.initialise_at
            if not is_time or self.step > schedule.until * self.recipe.steps:
                return 0
            return model.revive_codes(pixels_B3HW, threshold=schedule.threshold)

    @torch.no_grad()
    def _measure(self, pixels_B3HW: Tensor) -> dict[str, float | list[float]]:
        model = self.shipped_model()
        with self.accelerator.autocast():
            codes_BKN = model.encode(pixels_B3HW)
            decoded_B3HW = model.decode(codes_BKN).float()
        size = model.config.codebook_size
        return {
            "psnr": psnr(decoded_B3HW, pixels_B3HW).mean().item(),
            "usage": codebook_usage(codes_BKN, size).tolist(),
            "perplexity": codebook_perplexity(codes_BKN, size).tolist(),
        }

    @torch.no_grad()
    def _write_sheet(self) -> None:
        pixels_B3HW = torch.stack([self.pictures[-1 - index]["pixels"] for index in range(12)])
        pixels_B3HW = pixels_B3HW.to(self.accelerator.device).float().div(127.5).sub(1)
        model = self.shipped_model()
        with self.accelerator.autocast():
            decoded_B3HW = model.decode(model.encode(pixels_B3HW)).float()
        reconstruction_sheet(pixels_B3HW, decoded_B3HW).save(self.recipe.output / f"sheet-{self.step}.png")

    def _save(self) -> None:
        def write(folder: Path) -> None:
            self.accelerator.save_state(str(folder))

        write_checkpoint(self.recipe.output, self.step, write, keep=self.recipe.keep_checkpoints)

    def _resume(self) -> None:
        found = checkpoints(self.recipe.output)
        if found:
            self.accelerator.load_state(str(found[-1]))
            self.step = step_of(found[-1])
            logger.info("resumed from %s", found[-1])


def build_captions(recipe: TokenizerRecipe, config: UniTokConfig) -> CaptionEncoder | None:
    """What turns captions into ids, where pictures are trained against captions."""
    if not recipe.loss.contrastive:
        return None
    if recipe.text_tokenizer is None or not config.has_text_tower:
        raise ValueError(
            f"loss.contrastive is {recipe.loss.contrastive} but text_tokenizer or the text tower "
            "(architecture.embed_dim) is missing; give both or set loss.contrastive to 0"
        )
    return CaptionEncoder(recipe.text_tokenizer, vocab_size=config.text_vocab_size, context=config.text_context)
