"""Train the image tokenizer (UniTok): reconstruct, look alike, fool a discriminator, quantise, match captions.

In: a `TokenizerRecipe`. Out: a folder with checkpoints, `metrics.jsonl`, sheets of reconstructions and, at the end, the
tokenizer in `final/`. Every step is a function of the checkpoint before it, so a resumed run equals an uninterrupted
one. What is trained on and what is paid for are `train/data/images.py` and
`train/tokenizer_trainer.py`.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import torch
import torch.distributed as distributed
from accelerate import Accelerator, PartialState
from accelerate.utils import InitProcessGroupKwargs, set_seed
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm
from transformers import get_scheduler

from tokenizer.config import UniTokConfig
from tokenizer.images import (
    ImageProcessor,
    images_in,
    open_image,
    png_files,
    read_classes,
    reconstruction_sheet,
    to_images,
    to_pixels,
)
from tokenizer.metrics import (
    LPIPS,
    TEMPLATES,
    class_vectors,
    code_counts,
    count_correct,
    entropy_of,
    fidelity,
    psnr,
    read_templates,
    usage_of,
)
from tokenizer.quantizer import gather_rows, mean_over_ranks, num_ranks
from tokenizer.text_tower import EncodeCaptions, load_captions
from tokenizer.unitok import CONFIG_FILE, UniTok, UniTokOutput
from train.checkpoints import checkpoints, step_of, write_checkpoint
from train.data.images import build_source
from train.discriminators import Adversary, require_finite
from train.hardware import WAIT_IN_TRAINING, fast_dtype, training_device
from train.metrics import MetricsLog, as_words
from train.recipe import CodebookSchedule, EvaluationRecipe, TokenizerRecipe, as_yaml
from train.tokenizer_losses import contrastive_loss, reconstruction_loss

# What a tokenizer's training begins with: the network, its optimizer, and what turns captions into ids.


def build_model(recipe: TokenizerRecipe) -> UniTok:
    """A new tokenizer, or the one to go on from; what no loss of the recipe reaches does not learn."""
    if recipe.start_from is not None:
        model = with_another_decoder(UniTok.from_pretrained(recipe.start_from), recipe.architecture)
    else:
        preset = getattr(UniTokConfig, recipe.preset)().to_dict()
        model = UniTok(UniTokConfig.from_dict({**preset, **recipe.architecture}))
    model.recompute_activations(recipe.recompute_activations)
    if not recipe.loss.contrastive:
        for parameter in model.contrastive_parameters():
            parameter.requires_grad_(False)
    if recipe.trains == "decoder":
        for part in model.encoding_half.values():
            part.requires_grad_(False)
    return model


def with_another_decoder(model: UniTok, fields: dict[str, Any]) -> UniTok:
    """The same codes and a decoder of other sizes, which takes over the weights that fit; without fields, the same."""
    if not fields:
        return model
    old = model.config
    changed = UniTok(UniTokConfig.from_dict({**old.to_dict(), **fields}))
    encoded, known = changed.config.image_size / changed.config.shrink, old.image_size / old.shrink
    if changed.config.shrink != old.shrink and encoded != known:
        raise ValueError(
            f"the encoder knows pictures of {known:g} pixels: found {encoded:g} with image_size "
            f"{changed.config.image_size} and shrink {changed.config.shrink}; change both by the same factor"
        )
    weights, fitting = changed.state_dict(), model.state_dict()
    weights |= {
        name: value for name, value in fitting.items() if name in weights and weights[name].shape == value.shape
    }
    changed.load_state_dict(weights)
    return changed.eval()


def build_tokenizer_optimizer(recipe: TokenizerRecipe, model: UniTok) -> torch.optim.Optimizer:
    """AdamW; vectors and scalars (norms, biases, the logit scale) are not decayed."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, eps=recipe.epsilon, fused=True)


def build_captions(recipe: TokenizerRecipe, config: UniTokConfig) -> EncodeCaptions | None:
    """What turns captions into ids, where pictures are trained against captions."""
    if not recipe.loss.contrastive:
        return None
    assert recipe.text_tokenizer is not None, "TokenizerRecipe refuses captions without a vocabulary"
    if not config.has_text_tower:
        raise ValueError(
            f"loss.contrastive is {recipe.loss.contrastive} but the network has no text tower; set "
            "architecture.embed_dim above 0 or loss.contrastive to 0"
        )
    return load_captions(recipe.text_tokenizer, vocab_size=config.text_vocab_size, context=config.text_context)


# Keep the codebooks alive while the tokenizer trains: place them on real features once, revive dead entries later.
#
# In: the model, this process's pixels, the step. What happens is decided on the features of all processes and with
# numbers that are a function of the step, so every process changes its codebooks in the same way.


@torch.no_grad()
def tend_codebooks(
    model: UniTok, pixels_B3HW: Tensor, schedule: CodebookSchedule, *, step: int, steps: int, seed: int
) -> int:
    """Do what the schedule asks for after this step; returns how many entries were revived."""
    generator = torch.Generator().manual_seed(Random(f"codebooks/{seed}/{step}").getrandbits(63))
    if step + 1 == schedule.initialise_at:
        model.quantizer.initialise_from(gather_rows(model.features(pixels_B3HW)), generator=generator)
    is_time = step % schedule.every == 0 and schedule.initialise_at < step <= schedule.until * steps
    if not is_time or not model.quantizer.dead_entries(threshold=schedule.threshold).any():
        return 0
    features_BNZ = gather_rows(model.features(pixels_B3HW))
    return model.quantizer.revive(features_BNZ, threshold=schedule.threshold, generator=generator)


# What is measured while the tokenizer trains: sheets of reconstructions, zero-shot accuracy, rFID at the end.
#
# In: the tokenizer as it would be shipped, and folders of pictures. Out: numbers, and pictures in folders. The pictures
# of a folder are shared out over the processes; files of others are never deleted.


logger = logging.getLogger(__name__)

Item = TypeVar("Item")

ON_A_SHEET = 12


class TokenizerEvaluation:
    """Checks its folders when it is built, so that nothing is missing after days of training."""

    def __init__(
        self, recipe: EvaluationRecipe, *, image_size: int, batch_size: int, captions: EncodeCaptions | None
    ) -> None:
        self.recipe, self.image_size, self.batch_size = recipe, image_size, batch_size
        self.captions = captions
        self.state = PartialState()
        self.sheet_files = images_in(recipe.pictures)[:ON_A_SHEET] if recipe.pictures else []
        self.classes = read_classes(recipe.imagenet_val, recipe.classes) if recipe.imagenet_val else {}
        self.templates = read_templates(recipe.templates) if recipe.templates else TEMPLATES
        self.fid_files = png_files(recipe.fid_reference) if recipe.fid_reference else []
        if self.fid_files and recipe.fid_score and find_spec("torch_fidelity") is None:
            raise ValueError(
                "rFID is asked for but torch-fidelity is not installed; `pip install torch-fidelity`, or set "
                "evaluation.fid_score to false to write the reconstructions only"
            )

    def write_sheet(self, model: UniTok, samples_B3HW: Tensor, path: Path) -> None:
        """Pictures of the folder, or these uint8 ones, above their reconstructions."""
        if self.sheet_files:
            pixels_B3HW = self._read(self.sheet_files, "visual")
        else:
            pixels_B3HW = to_pixels(samples_B3HW)
        pixels_B3HW = pixels_B3HW.to(model.device)
        reconstruction_sheet(pixels_B3HW, reconstruct(model, pixels_B3HW)).save(path)

    @torch.no_grad()
    def zero_shot(self, model: UniTok) -> dict[str, float]:
        """Top-1 and top-5 accuracy; nothing where no pictures are given. Called by all processes at once."""
        if not self.classes:
            return {}
        assert self.captions is not None, "TokenizerRecipe refuses zero-shot without captions"
        classes_ND = class_vectors(model, self.captions, list(self.classes.values()), self.templates)
        labelled = self._labelled()
        right = torch.zeros(2, dtype=torch.int64, device=model.device)
        for part in self._shared_out(labelled):
            pixels_B3HW = self._read([file for file, _ in part], "zero_shot").to(model.device)
            right += count_correct(model, pixels_B3HW, torch.tensor([label for _, label in part]), classes_ND)
        if num_ranks() > 1:
            distributed.all_reduce(right)
        top1, top5 = (right.double() / len(labelled)).tolist()
        return {"zero_shot_top1": top1, "zero_shot_top5": top5}

    def _labelled(self) -> list[tuple[Path, int]]:
        assert self.recipe.imagenet_val is not None
        folders = enumerate(self.classes)
        return [(file, label) for label, name in folders for file in images_in(self.recipe.imagenet_val / name)]

    @torch.no_grad()
    def reconstruct_for_fid(self, model: UniTok) -> dict[str, float]:
        """Write the reconstruction of every reference picture, then rFID and IS where asked for. On all processes."""
        recipe = self.recipe
        if not self.fid_files:
            return {}
        assert recipe.fid_output is not None, "TokenizerRecipe refuses one folder without the other"
        recipe.fid_output.mkdir(parents=True, exist_ok=True)
        for part in self._shared_out(self.fid_files):
            decoded_B3HW = reconstruct(model, self._read(part, "crop").to(model.device))
            for file, image in zip(part, to_images(decoded_B3HW), strict=True):
                image.save(recipe.fid_output / file.name)
        self.state.wait_for_everyone()
        if not recipe.fid_score or not self.state.is_main_process:
            return {}
        return fidelity(recipe.fid_output, recipe.fid_reference, batch_size=self.batch_size)

    def _shared_out(self, items: Sequence[Item]) -> Iterator[Sequence[Item]]:
        mine = items[self.state.process_index :: self.state.num_processes]
        for start in range(0, len(mine), self.batch_size):
            yield mine[start : start + self.batch_size]

    def _read(self, files: Sequence[Path], preparation: str) -> Tensor:
        prepare = ImageProcessor(height=self.image_size, width=self.image_size, preparation=preparation)
        return prepare([open_image(file) for file in files])


@torch.no_grad()
def reconstruct(model: UniTok, pixels_B3HW: Tensor) -> Tensor:
    """Through the codes and back, in [-1, 1]."""
    return model.decode(model.encode(pixels_B3HW)).float()


# What the tokenizer pays at a step: every loss that the recipe names, weighted, by name.
#
# In: the model's output, the real pixels, the step. Out: weighted parts whose sum is trained on. A loss of weight 0 is
# neither computed nor loaded.


class TokenizerObjective:
    """Holds the frozen network of the perceptual loss and the adversary, where there are any."""

    def __init__(self, recipe: TokenizerRecipe, *, adversary: Adversary | None, device: torch.device) -> None:
        self.recipe, self.weights, self.adversary = recipe, recipe.loss, adversary
        self.lpips: LPIPS | None = None
        if recipe.loss.perceptual:
            assert recipe.lpips is not None, "TokenizerRecipe refuses a perceptual weight without weights"
            self.lpips = LPIPS.from_file(recipe.lpips).to(device)

    def __call__(
        self, output: UniTokOutput, pixels_B3HW: Tensor, *, step: int, last_weight: nn.Parameter
    ) -> dict[str, Tensor]:
        """The weighted parts.

        Args:
            last_weight: of the decoder, where the adversarial loss is balanced against those on the pictures.
        """
        weights, made_B3HW = self.weights, output.reconstruction_B3HW
        codebooks_wait = step < self.recipe.codebooks.initialise_at
        parts = {
            "reconstruction": reconstruction_loss(
                made_B3HW,
                pixels_B3HW,
                l1_weight=weights.l1,
                l2_weight=weights.l2,
                detail_weight=weights.detail,
            )
        }
        if self.lpips is not None:
            parts["perceptual"] = weights.perceptual * self.lpips(made_B3HW, pixels_B3HW).mean()
        plain = torch.stack(list(parts.values())).sum()
        # Kept in the graph with weight 0, so that the codebooks have a gradient on every process from the first step.
        parts["vq"] = (0.0 if codebooks_wait else weights.vq) * output.vq_loss
        if weights.entropy:
            parts["entropy"] = weights.entropy * output.entropy_loss
        if weights.contrastive:
            parts["contrastive"] = weights.contrastive * contrastive_loss(
                output.image_features, output.text_features, output.logit_scale
            )
        if self.adversary is not None and self.adversary.schedule.weight(step):
            loss = self.adversary.unconvincingness(made_B3HW, step)
            parts["adversarial"] = self.adversary.weight(plain, loss, last_weight, step) * loss
        return parts


logger = logging.getLogger(__name__)

Values = dict[str, float | list[float]]


class TokenizerTrainer:
    """Owns the model, its optimizer and the place in the schedule."""

    def __init__(self, recipe: TokenizerRecipe) -> None:
        require_files(recipe)
        set_seed(recipe.seed)
        self.recipe = recipe
        precision: str = recipe.precision
        if precision == "auto":
            precision = "bf16" if fast_dtype(training_device()) == torch.bfloat16 else "no"
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
        pixels_B3HW = to_pixels(pixels_B3HW.to(device))
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
        counts_KC = code_counts(gather_rows(codes_BKN), model.config.codebook_size)
        return {
            "psnr": mean_over_ranks(psnr(decoded_B3HW, pixels_B3HW).mean()).item(),
            "usage": usage_of(counts_KC).tolist(),
            "perplexity": entropy_of(counts_KC).exp().tolist(),
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
