"""Train the image tokenizer (UniTok): reconstruct, look alike, fool a discriminator, quantise, match captions.

In: a `TokenizerRecipe`. Out: a folder with checkpoints, `metrics.jsonl`, sheets of reconstructions and, at the end, the
tokenizer in `final/`. Every step is a function of the checkpoint before it, so a resumed run equals an uninterrupted
one. What is trained on and what is paid for are `train/data/picture_source.py` and
`train/image_tokenizer/objective.py`.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, set_seed
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm
from transformers import get_scheduler

from tokenizer.across_ranks import gather_rows, mean_over_ranks
from tokenizer.config import UniTokConfig
from tokenizer.metrics import codebook_perplexity, codebook_usage, psnr
from tokenizer.model import CONFIG_FILE, UniTok
from train.checkpoint.checkpoints import checkpoints, step_of, write_checkpoint
from train.data.picture_source import build_source
from train.data.processes import WAIT_IN_TRAINING
from train.image_tokenizer.adversarial import Adversary, require_finite
from train.image_tokenizer.builders import build_captions, build_model, build_tokenizer_optimizer
from train.image_tokenizer.codebooks import tend_codebooks
from train.image_tokenizer.evaluation import ON_A_SHEET, TokenizerEvaluation
from train.image_tokenizer.objective import TokenizerObjective
from train.image_tokenizer.recipe import TokenizerRecipe
from train.observing.metrics_log import MetricsLog, as_words
from train.precision import prefers_bfloat16
from train.recipe import as_yaml

logger = logging.getLogger(__name__)

Values = dict[str, float | list[float]]


class TokenizerTrainer:
    """Owns the model, its optimizer and the place in the schedule."""

    def __init__(self, recipe: TokenizerRecipe) -> None:
        require_files(recipe)
        set_seed(recipe.seed)
        self.recipe = recipe
        precision = recipe.precision if recipe.precision != "auto" else "bf16" if prefers_bfloat16() else "no"
        # Said aloud, because several processes without an accelerator find each other only then.
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),
            mixed_precision=precision,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT_IN_TRAINING)],  # while the first one computes rFID
        )
        model = build_model(recipe)
        self.config = model.config
        captions = build_captions(recipe, model.config)
        size = model.config.image_size
        self.evaluation = TokenizerEvaluation(
            recipe.evaluation, image_size=size, batch_size=recipe.batch_size, captions=captions
        )
        self.pictures = build_source(recipe, image_size=size, captions=captions, state=self.accelerator.state)
        optimizer = build_tokenizer_optimizer(recipe, model)
        self.scheduler = get_scheduler(
            "cosine_with_min_lr",
            optimizer,
            num_warmup_steps=recipe.warmup_steps,
            num_training_steps=recipe.steps,
            scheduler_specific_kwargs={"min_lr_rate": recipe.final_learning_rate},
        )
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.average = AveragedModel(self.unwrapped, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay))
        self.adversary = self._build_adversary()
        self.objective = TokenizerObjective(recipe, adversary=self.adversary, device=self.accelerator.device)
        self.accelerator.register_for_checkpointing(self.average, self.scheduler)
        set_seed(recipe.seed, device_specific=True)  # stochastic depth differs between processes
        self.step = 0

    def _build_adversary(self) -> Adversary | None:
        if not self.recipe.adversarial.weight:
            return None
        return Adversary(
            self.recipe.adversarial,
            accelerator=self.accelerator,
            image_size=self.config.image_size,
            steps=self.recipe.steps,
            seed=self.recipe.seed,
        )

    @property
    def unwrapped(self) -> UniTok:
        return self.accelerator.unwrap_model(self.model)

    def train(self, *, stop_at: int | None = None) -> None:
        """Go on from the newest checkpoint up to the last step, or up to `stop_at`."""
        recipe = self.recipe
        recipe.output.mkdir(parents=True, exist_ok=True)
        if recipe.left_out:
            logger.info("trained without these losses, whose weight is 0: %s", ", ".join(recipe.left_out))
        self._resume()
        last = min(recipe.steps, stop_at or recipe.steps)
        self.log = self._open_log()
        started, first = time.monotonic(), self.step
        is_quiet = not self.accelerator.is_main_process
        progress = tqdm(total=recipe.steps, initial=self.step, desc="image tokenizer", mininterval=5, disable=is_quiet)
        for batch in self.pictures.batches(self.step, last):
            values = self._training_step(batch["pixels"], batch.get("text_ids"))
            self.step += 1
            progress.update()
            if self.step % recipe.log_every == 0 or self.step == last:
                pictures = (self.step - first) * recipe.batch_size * self.accelerator.num_processes
                self._write({**values, "pictures_per_second": pictures / (time.monotonic() - started)})
            self._look(is_last=self.step == last)
            if self.step % recipe.save_every == 0 or self.step == last:
                self._save()
        progress.close()
        if self.step == recipe.steps:
            self._finish()

    def shipped_model(self) -> UniTok:
        """The average of the weights (or the last ones where no average is kept), in evaluation mode."""
        model = self.average.module if self.recipe.ema_decay else self.unwrapped
        assert isinstance(model, UniTok), "AveragedModel copies what it was given"
        return model.eval()

    def _training_step(self, pixels_B3HW: Tensor, text_ids_BT: Tensor | None) -> Values:
        recipe, device = self.recipe, self.accelerator.device
        pixels_B3HW = pixels_B3HW.to(device).float().div(127.5).sub(1)
        self.model.train()
        with self.accelerator.autocast():
            output = self.model(
                pixels_B3HW,
                None if text_ids_BT is None else text_ids_BT.to(device),
                with_entropy=recipe.loss.entropy > 0,
            )
            last_weight = self.unwrapped.decoder.last_weight
            parts = self.objective(output, pixels_B3HW, step=self.step, last_weight=last_weight)
        norm = self._descend(torch.stack(list(parts.values())).sum())
        if self.adversary is not None and self.adversary.schedule.weight(self.step):
            parts |= self.adversary.learn(pixels_B3HW, output.reconstruction_B3HW, self.step)
        revived = 0
        if recipe.trains == "all":
            with self.accelerator.autocast():
                revived = tend_codebooks(
                    self.unwrapped, pixels_B3HW, recipe.codebooks, step=self.step, steps=recipe.steps, seed=recipe.seed
                )
        if (self.step + 1) % recipe.log_every and self.step + 1 != recipe.steps:
            return {}
        with torch.no_grad():
            values: Values = {name: mean_over_ranks(part.detach().float()).item() for name, part in parts.items()}
        values |= {"gradient_norm": norm.item(), "learning_rate": self.scheduler.get_last_lr()[0], "revived": revived}
        return values | self._measure(pixels_B3HW)

    def _descend(self, loss: Tensor) -> Tensor:
        """One step of the tokenizer's optimizer; returns the length of the gradient before it is clipped."""
        require_finite("loss", loss, step=self.step)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.max_grad_norm)
        if self.accelerator.scaler is None:  # float16's scaler leaves such a step out by itself
            require_finite("gradient norm", norm, step=self.step)
        self.optimizer.step()
        self.scheduler.step()
        if self.recipe.loss.contrastive:
            self.unwrapped.clamp_logit_scale()
        self.average.update_parameters(self.unwrapped)
        return norm

    @torch.no_grad()
    def _measure(self, pixels_B3HW: Tensor) -> Values:
        model = self.shipped_model()
        with self.accelerator.autocast():
            codes_BKN = model.encode(pixels_B3HW)
            decoded_B3HW = model.decode(codes_BKN).float()
        size, codes_BKN = model.config.codebook_size, gather_rows(codes_BKN)
        return {
            "psnr": mean_over_ranks(psnr(decoded_B3HW, pixels_B3HW).mean()).item(),
            "usage": codebook_usage(codes_BKN, size).tolist(),
            "perplexity": codebook_perplexity(codes_BKN, size).tolist(),
        }

    def _look(self, *, is_last: bool) -> None:
        """A sheet for the eye and the accuracy, when they are due."""
        recipe, model = self.recipe, self.shipped_model()
        with self.accelerator.autocast():
            if (self.step % recipe.sheet_every == 0 or is_last) and self.accelerator.is_main_process:
                path = recipe.output / f"sheet-{self.step}.png"
                self.evaluation.write_sheet(model, self.pictures.samples(ON_A_SHEET), path)
            every = recipe.evaluation.every
            if is_last or (every and self.step % every == 0):
                self._write(self.evaluation.zero_shot(model))

    def _finish(self) -> None:
        """The tokenizer in its folder, and what is measured once."""
        model = self.shipped_model()
        if self.accelerator.is_main_process:
            model.save_pretrained(self.recipe.output / "final")
        self._write(self.evaluation.reconstruct_for_fid(model))
        self.accelerator.wait_for_everyone()

    def _open_log(self) -> MetricsLog | None:
        if not self.accelerator.is_main_process:
            return None
        (self.recipe.output / "recipe.yaml").write_text(as_yaml(self.recipe))
        return MetricsLog(self.recipe.output / "metrics.jsonl", resumed_step=self.step)

    def _write(self, values: Values | dict[str, float]) -> None:
        if self.log is not None and values:
            self.log.write(self.step, dict(values))
            logger.info("step %d | %s", self.step, as_words(dict(values)))

    def _save(self) -> None:
        def write(folder: Path) -> None:
            self.accelerator.save_state(str(folder))
            self.pictures.save(folder)
            if self.accelerator.is_main_process:
                (folder / CONFIG_FILE).write_text(json.dumps(self.config.to_dict(), indent=2) + "\n")

        state = self.accelerator.state
        write_checkpoint(self.recipe.output, self.step, write, keep=self.recipe.keep_checkpoints, state=state)

    def _resume(self) -> None:
        found = checkpoints(self.recipe.output)
        if not found:
            return
        newest = found[-1]
        require_same_sizes(newest / CONFIG_FILE, self.config)
        self.accelerator.load_state(str(newest))
        self.pictures.load(newest)
        self.step = step_of(newest)
        logger.info("resumed from %s", newest)


def require_files(recipe: TokenizerRecipe) -> None:
    """Name the first file that is not there, before anything large is built."""
    for name, file in recipe.files.items():
        if not file.exists():
            raise FileNotFoundError(
                f"{name} is not there; the recipe names {file}; download it, mend the path, or set the weight of what "
                "needs it to 0"
            )


def require_same_sizes(file: Path, config: UniTokConfig) -> None:
    """Refuse a checkpoint of another network; some differences (projection_attention) do not show in the weights."""
    if not file.is_file():
        return  # written before checkpoints said what they are of
    stored = UniTokConfig.from_dict(json.loads(file.read_text(encoding="utf-8"))).to_dict()
    differing = {name: (stored[name], value) for name, value in config.to_dict().items() if stored[name] != value}
    if differing:
        raise ValueError(
            f"{file.parent} was trained with other sizes (stored, asked for): {differing}; "
            "give the recipe it was trained with, or another output to begin anew"
        )
