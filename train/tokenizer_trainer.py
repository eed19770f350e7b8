"""Train the image tokenizer (UniTok): a recipe in, checkpoints, a log, sheets of reconstructions and `final/` out.

Each step is a function of the checkpoint before it, so a resumed run equals an uninterrupted one. Losses of weight 0
are neither computed nor loaded.

Letters: B batch, G batches of all processes, T text positions, H W pixels, K codebooks, C codes, N classes, D width.
"""

import json
import logging
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from accelerate import Accelerator, PartialState
from accelerate.utils import InitProcessGroupKwargs, reduce, set_seed
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from mllm.files import read_json, whole_folder, write_image, write_text
from tokenizer import images, metrics
from tokenizer.config import UniTokConfig
from tokenizer.number_format import fast_dtype
from tokenizer.quantizer import gather_rows, mean_over_ranks, rank
from tokenizer.text_tower import EncodeCaptions, load_captions
from tokenizer.unitok import CONFIG_FILE, UniTok, UniTokOutput
from train.checkpoints import checkpoints_in, newest_checkpoint, resumes, write_checkpoint
from train.data.tokenizer_images import build_source
from train.discriminators import Adversary, decay_groups, descend
from train.hardware import WAIT_IN_TRAINING, training_device
from train.metrics import MetricsLog, Values, as_words
from train.recipe import CodebookSchedule, EvaluationRecipe, TokenizerLossWeights, TokenizerRecipe, as_yaml

logger = logging.getLogger(__name__)

ON_A_SHEET = 12
DETAIL_WINDOW = 5  # side of the window, in pixels, in which `detail_of` looks for contrast
Item = TypeVar("Item")


class TokenizerTrainer:
    """Owns the model, its average, the optimizers and the current step."""

    def __init__(self, recipe: TokenizerRecipe) -> None:
        for name, file in recipe.files.items():
            if file is None or not file.exists():
                raise FileNotFoundError(f"{name} must be a file, got {file}; download it, or give it weight 0")
        set_seed(recipe.seed)
        self.recipe = recipe
        fastest = "bf16" if fast_dtype(training_device()) == torch.bfloat16 else "no"
        # `cpu` is given, because several processes without an accelerator find each other only then.
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),
            mixed_precision=fastest if recipe.precision == "auto" else recipe.precision,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT_IN_TRAINING)],  # while the first one computes rFID
        )
        model = build_model(recipe)
        self.config, size = model.config, model.config.image_size
        captions, batch_size, patch = build_captions(recipe, model.config), recipe.batch_size, model.config.patch_size
        for name, side in (("shards.window", recipe.shards.window), ("world_crop", recipe.world_crop)):
            if side is not None and side % patch:
                raise ValueError(f"{name} must be a multiple of the patch size {patch}, got {side}; change it")
        self.evaluation = TokenizerValidation(recipe.evaluation, size, batch_size=batch_size, captions=captions)
        self.source = build_source(recipe, image_size=size, captions=captions, state=self.accelerator.state)
        rates: dict[str, Any] = {"lr": recipe.learning_rate, "betas": recipe.betas, "eps": recipe.epsilon}
        optimizer = torch.optim.AdamW(decay_groups(model, recipe.weight_decay), fused=True, **rates)
        warmup, final = recipe.warmup_steps, recipe.final_learning_rate
        shares = partial(learning_rate_share, warmup=warmup, steps=recipe.steps, final=final)
        self.scheduler = LambdaLR(optimizer, shares)
        self.unwrapped = model  # accelerate's unwrap_model would import DeepSpeed
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.average = AveragedModel(self.unwrapped, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay))
        sizes = {"image_size": size, "steps": recipe.steps, "seed": recipe.seed}
        is_adversarial, lpips = recipe.adversarial.weight > 0, recipe.lpips if recipe.loss.perceptual else None
        self.adversary = Adversary(recipe.adversarial, self.accelerator, **sizes) if is_adversarial else None
        self.lpips = metrics.LPIPS.from_file(lpips).to(self.accelerator.device) if lpips else None
        self.accelerator.register_for_checkpointing(self.average, self.scheduler)
        set_seed(recipe.seed, device_specific=True)  # stochastic depth differs between processes
        self.step = 0

    @property
    def final_model(self) -> UniTok:
        """The average of the weights (or the last ones where no average is kept), in evaluation mode."""
        model = self.average.module if self.recipe.ema_decay else self.unwrapped
        assert isinstance(model, UniTok), "AveragedModel copies what it was given"
        return model.eval()

    def train(self) -> None:
        """Resume from the latest checkpoint, if there is one, and train to the last step."""
        recipe = self.recipe
        recipe.output.mkdir(parents=True, exist_ok=True)
        weights = {**asdict(recipe.loss), "adversarial": recipe.adversarial.weight}
        logger.info("losses of weight 0: %s", ", ".join(name for name in weights if not weights[name]) or "none")
        self._resume()
        is_main = self.accelerator.is_main_process
        self.log: MetricsLog | None = None
        if is_main:
            if self.step < recipe.steps:  # the recipe of a finished run stays
                write_text(recipe.output / "recipe.yaml", as_yaml(recipe))
            self.log = MetricsLog(recipe.output / "metrics.jsonl", resumed_step=self.step)
        started, first = time.monotonic(), self.step
        progress = tqdm(total=recipe.steps, initial=first, desc="image tokenizer", mininterval=5, disable=not is_main)
        for batch in self.source.batches(self.step, recipe.steps):
            values = self._training_step(batch["pixels"], batch.get("text_ids"))
            self.step += 1
            progress.update()
            if self._is_due(recipe.log_every):
                num_images = (self.step - first) * recipe.batch_size * self.accelerator.num_processes
                self._write({**values, "images_per_second": num_images / (time.monotonic() - started)})
            self._evaluate()
            if self._is_due(recipe.save_every):
                self._save()
        progress.close()
        if is_main:
            with whole_folder(recipe.output / "final") as folder:
                self.final_model.save_pretrained(folder)
        self._write(self.evaluation.reconstruct_for_fid(self.final_model))
        self.accelerator.wait_for_everyone()

    def _is_due(self, every: int) -> bool:
        return self.step == self.recipe.steps or bool(every and self.step % every == 0)

    def _training_step(self, pixels_B3HW: Tensor, text_ids_BT: Tensor | None) -> Values:
        """One step of all optimizers; returns what is logged, where an entry of the log is due."""
        recipe, device = self.recipe, self.accelerator.device
        pixels_B3HW = images.to_pixels(pixels_B3HW.to(device))
        self.model.train()
        with self.accelerator.autocast():
            texts = None if text_ids_BT is None else text_ids_BT.to(device)
            output = self.model(pixels_B3HW, texts, with_entropy=recipe.loss.entropy > 0)
            parts = self._losses(output, pixels_B3HW)
        loss, limit = torch.stack(list(parts.values())).sum(), recipe.max_grad_norm
        norm = descend(self.accelerator, self.optimizer, self.model, loss, max_norm=limit, step=self.step)
        self.scheduler.step()
        if recipe.loss.contrastive:
            self.unwrapped.clamp_logit_scale()
        self.average.update_parameters(self.unwrapped)
        if self.adversary is not None and self.adversary.schedule.weight(self.step):
            parts |= self.adversary.train_step(pixels_B3HW, output.reconstruction_B3HW, self.step)
        revived = 0
        if recipe.trainable == "all":
            with self.accelerator.autocast():
                when = {"step": self.step, "steps": recipe.steps, "seed": recipe.seed}
                revived = update_codebooks(self.unwrapped, pixels_B3HW, recipe.codebooks, **when)
        if (self.step + 1) % recipe.log_every and self.step + 1 != recipe.steps:
            return {}
        with torch.no_grad():
            values: Values = {name: mean_over_ranks(part.detach().float()).item() for name, part in parts.items()}
        values |= {"gradient_norm": norm.item(), "learning_rate": float(self.scheduler.get_last_lr()[0])}
        return values | {"revived": revived} | self._measure(pixels_B3HW)

    def _losses(self, output: UniTokOutput, pixels_B3HW: Tensor) -> dict[str, Tensor]:
        """The weighted parts of the tokenizer's loss, by name; their sum is trained on."""
        weights, made_B3HW = self.recipe.loss, output.reconstruction_B3HW
        parts = {"reconstruction": reconstruction_loss(made_B3HW, pixels_B3HW, weights)}
        if self.lpips is not None:
            parts["perceptual"] = weights.perceptual * self.lpips(made_B3HW, pixels_B3HW).mean()
        image_loss = torch.stack(list(parts.values())).sum()
        # Kept in the graph with weight 0, so that the codebooks have a gradient on every process from the first step.
        parts["vq"] = (0.0 if self.step < self.recipe.codebooks.initialise_at else weights.vq) * output.vq_loss
        if weights.entropy:
            parts["entropy"] = weights.entropy * output.entropy_loss
        if weights.contrastive:
            features = cast(tuple[Tensor, Tensor], (output.image_features, output.text_features))
            parts["contrastive"] = weights.contrastive * contrastive_loss(*features, cast(Tensor, output.logit_scale))
        if self.adversary is not None and self.adversary.schedule.weight(self.step):
            loss = self.adversary.generator_loss(made_B3HW, self.step)
            last_weight = self.unwrapped.decoder.last_weight
            parts["adversarial"] = self.adversary.weight(image_loss, loss, last_weight, self.step) * loss
        return parts

    @torch.no_grad()
    def _measure(self, pixels_B3HW: Tensor) -> Values:
        model = self.final_model
        with self.accelerator.autocast():
            codes_BKN = model.encode(pixels_B3HW)
            decoded_B3HW = model.decode(codes_BKN)
        counts_KC = metrics.code_counts(gather_rows(codes_BKN), model.config.codebook_size)
        return {
            "psnr": mean_over_ranks(metrics.psnr(decoded_B3HW, pixels_B3HW).mean()).item(),
            "usage": metrics.usage_of(counts_KC).tolist(),
            "perplexity": metrics.entropy_of(counts_KC).exp().tolist(),
        }

    def _evaluate(self) -> None:
        """The sheet of reconstructions and the zero-shot accuracy, when they are due."""
        recipe, model = self.recipe, self.final_model
        with self.accelerator.autocast():
            if self._is_due(recipe.sheet_every) and self.accelerator.is_main_process:
                path = recipe.output / f"sheet-{self.step}.png"
                self.evaluation.write_sheet(model, self.source.samples(ON_A_SHEET), path)
            if self._is_due(recipe.evaluation.every):
                self._write(self.evaluation.zero_shot(model))

    def _write(self, values: Values | dict[str, float]) -> None:
        if self.log is not None and values:
            self.log.write(self.step, dict(values))
            logger.info("step %d | %s", self.step, as_words(dict(values)))

    def _save(self) -> None:
        def write(folder: Path) -> None:
            self.accelerator.save_state(str(folder))
            self.source.save(folder)
            if self.accelerator.is_main_process:
                (folder / CONFIG_FILE).write_text(json.dumps(self.config.to_dict(), indent=2) + "\n")

        write_checkpoint(self.recipe.output, self.step, write, state=self.accelerator.state)
        if self.accelerator.is_main_process:
            for older in checkpoints_in(self.recipe.output)[: -self.recipe.keep_checkpoints]:
                shutil.rmtree(older, ignore_errors=True)  # one may be a link, or held by another program

    def _resume(self) -> None:
        newest = newest_checkpoint(self.recipe.output)
        if newest is not None:
            require_same_config(newest / CONFIG_FILE, self.config)
            self.accelerator.load_state(str(newest))
            self.source.load(newest)
            self.step = int(newest.name.removeprefix("checkpoint-"))
            logger.info("%s", resumes(newest, self.recipe.steps))


class TokenizerValidation:
    """What is measured in training: sheets of reconstructions, zero-shot accuracy, rFID at the end. Files are checked
    when it is built, so that nothing is missing after days of training. The images of a folder are shared out over the
    processes."""

    def __init__(
        self, recipe: EvaluationRecipe, image_size: int, *, batch_size: int, captions: EncodeCaptions | None
    ) -> None:
        self.recipe, self.image_size, self.batch_size, self.captions = recipe, image_size, batch_size, captions
        self.state = PartialState()
        self.sheet_files = images.images_in(recipe.images)[:ON_A_SHEET] if recipe.images else []
        folder, names = recipe.imagenet_val, recipe.classes
        self.classes = images.read_classes(folder, names) if folder and names else {}
        self.templates = metrics.read_templates(recipe.templates or metrics.CLIP_TEMPLATES)
        self.fid_files = images.png_files(recipe.fid_reference) if recipe.fid_reference else []
        if self.fid_files and recipe.fid_score:
            metrics.need_fidelity()

    def write_sheet(self, model: UniTok, samples_B3HW: Tensor, path: Path) -> None:
        """The images of the folder, or else these uint8 ones, above their reconstructions."""
        pixels_B3HW = self._read(self.sheet_files, "visual") if self.sheet_files else images.to_pixels(samples_B3HW)
        pixels_B3HW = pixels_B3HW.to(model.device)
        write_image(path, images.reconstruction_sheet(pixels_B3HW, model.decode(model.encode(pixels_B3HW))))

    @torch.no_grad()
    def zero_shot(self, model: UniTok) -> dict[str, float]:
        """Top-1 and top-5 accuracy; nothing where no images are given. Called by all processes at once."""
        if self.captions is None or self.recipe.imagenet_val is None:
            return {}
        folders = [self.recipe.imagenet_val / name for name in self.classes]
        labelled = [(file, label) for label, folder in enumerate(folders) for file in images.images_in(folder)]
        classes_ND = metrics.class_vectors(model, self.captions, list(self.classes.values()), self.templates)
        num_right = torch.zeros(2, dtype=torch.int64, device=model.device)
        for part in self._shared_out(labelled):
            files, labels = zip(*part, strict=True)
            pixels_B3HW = self._read(files, "zero_shot").to(model.device)
            ranks_B = metrics.class_ranks(model, pixels_B3HW, torch.tensor(labels), classes_ND)
            num_right += torch.stack([(ranks_B < best).sum() for best in (1, 5)])
        top1, top5 = (reduce(num_right, "sum").double() / len(labelled)).tolist()
        return {"zero_shot_top1": top1, "zero_shot_top5": top5}

    @torch.no_grad()
    def reconstruct_for_fid(self, model: UniTok) -> dict[str, float]:
        """Write the reconstruction of each reference image, then compute rFID and IS. Called by all processes."""
        recipe = self.recipe
        if recipe.fid_output is None:
            return {}
        for part in self._shared_out(self.fid_files):
            decoded_B3HW = model.decode(model.encode(self._read(part, "crop").to(model.device)))
            for file, image in zip(part, images.to_images(decoded_B3HW), strict=True):
                write_image(recipe.fid_output / file.name, image)
        self.state.wait_for_everyone()
        if not recipe.fid_score or not self.state.is_main_process:
            return {}
        return metrics.fidelity(recipe.fid_output, recipe.fid_reference, batch_size=self.batch_size)

    def _shared_out(self, items: Sequence[Item]) -> Iterator[Sequence[Item]]:
        mine = items[self.state.process_index :: self.state.num_processes]
        for start in range(0, len(mine), self.batch_size):
            yield mine[start : start + self.batch_size]

    def _read(self, files: Sequence[Path], preparation: str) -> Tensor:
        prepare = images.ImageProcessor(height=self.image_size, width=self.image_size, preparation=preparation)
        return prepare([images.read_image(file) for file in files])


def build_model(recipe: TokenizerRecipe) -> UniTok:
    """A new tokenizer, or the one to start from; what no loss of the recipe reaches is frozen."""
    if recipe.start_from is not None:
        model = with_new_decoder(UniTok.from_pretrained(recipe.start_from), recipe.architecture)
    else:
        preset = getattr(UniTokConfig, recipe.preset)().to_dict()
        model = UniTok(UniTokConfig.from_dict({**preset, **recipe.architecture}))
    model.recompute_activations(recipe.recompute_activations)
    frozen: list[Any] = [] if recipe.loss.contrastive else model.contrastive_parameters()
    frozen += model.encoding_half.values() if recipe.trainable == "decoder" else []
    for part in frozen:
        part.requires_grad_(False)
    return model


def with_new_decoder(model: UniTok, fields: dict[str, Any]) -> UniTok:
    """The same codes and a decoder of other sizes, which takes over the weights that fit; without fields, the same."""
    if not fields:
        return model
    old = model.config
    config = UniTokConfig.from_dict({**old.to_dict(), **fields})
    encoded, trained = config.image_size / config.shrink, old.image_size / old.shrink
    if config.shrink != old.shrink and encoded != trained:
        raise ValueError(f"image_size / shrink must stay {trained:g}, got {encoded:g}; change both by the same factor")
    changed, given = UniTok(config), model.state_dict()
    fits = {name for name, value in changed.state_dict().items() if name in given and value.shape == given[name].shape}
    changed.load_state_dict({name: given[name] for name in fits}, strict=False)
    return changed.eval()


def learning_rate_share(step: int, *, warmup: int, steps: int, final: float) -> float:
    """Of the largest learning rate: a linear warm-up, then half a cosine down to `final`. As transformers computes it,
    whose module of schedules takes seconds to import (peft, bitsandbytes)."""
    if step < warmup:
        return step / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return 0.5 * (1.0 + math.cos(math.pi * progress)) * (1 - final) + final


def build_captions(recipe: TokenizerRecipe, config: UniTokConfig) -> EncodeCaptions | None:
    """The caption encoder, where images are trained against captions."""
    if not recipe.loss.contrastive or recipe.text_tokenizer is None:
        return None
    if not config.has_text_tower:
        raise ValueError("embed_dim must be > 0 for loss.contrastive, got 0; set architecture.embed_dim")
    return load_captions(recipe.text_tokenizer, vocab_size=config.text_vocab_size, context=config.text_context)


def reconstruction_loss(reconstruction_B3HW: Tensor, pixels_B3HW: Tensor, weights: TokenizerLossWeights) -> Tensor:
    """Mean absolute and mean squared error with UniTok's weights, in float32; more where the image has detail."""
    pixels_B3HW = pixels_B3HW.float()
    difference_B3HW = reconstruction_B3HW.float() - pixels_B3HW
    error_B3HW = weights.l1 * difference_B3HW.abs() + weights.l2 * difference_B3HW.square()
    if weights.detail:
        error_B3HW = error_B3HW * (1 + weights.detail * detail_of(pixels_B3HW))
    return error_B3HW.mean()


def detail_of(pixels_B3HW: Tensor) -> Tensor:
    """Contrast around each pixel, 0 to 1, (B, 1, H, W): 1 where a window spans half of the range. Flat surfaces fill
    most of a drawing and are learned at once; borders decide what is seen and are few."""
    margin = DETAIL_WINDOW // 2
    highest_B3HW = F.max_pool2d(pixels_B3HW, DETAIL_WINDOW, stride=1, padding=margin)
    lowest_B3HW = -F.max_pool2d(-pixels_B3HW, DETAIL_WINDOW, stride=1, padding=margin)
    return (highest_B3HW - lowest_B3HW).amax(dim=1, keepdim=True).clamp(max=1.0)


def contrastive_loss(image_BD: Tensor, text_BD: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE (CLIP, arXiv:2103.00020, figure 3): row b of the images belongs to row b of the captions. Each
    process scores its own rows, of any length, against those of all processes; the mean over the processes is the loss
    of one process with the whole batch, and through `DistributedDataParallel` so is the gradient. `scale`: inverse
    temperature, already exponentiated."""
    image_BD, text_BD = F.normalize(image_BD.float(), dim=-1), F.normalize(text_BD.float(), dim=-1)
    targets_B = rank() * len(image_BD) + torch.arange(len(image_BD), device=image_BD.device)
    from_images_BG = scale * image_BD @ gather_rows(text_BD).T
    from_texts_BG = scale * text_BD @ gather_rows(image_BD).T
    return (F.cross_entropy(from_images_BG, targets_B) + F.cross_entropy(from_texts_BG, targets_B)) / 2


@torch.no_grad()
def update_codebooks(
    model: UniTok, pixels_B3HW: Tensor, schedule: CodebookSchedule, *, step: int, steps: int, seed: int
) -> int:
    """Place the codebooks on real features once and revive dead entries later; returns how many were revived. All
    processes decide on the features of all of them, with random numbers that are a function of the step, so that their
    codebooks stay equal."""
    generator = torch.Generator().manual_seed(Random(f"codebooks/{seed}/{step}").getrandbits(63))
    quantizer = model.quantizer
    if step + 1 == schedule.initialise_at:
        quantizer.initialise_from(gather_rows(model.features(pixels_B3HW)), generator=generator)
    is_due = step % schedule.every == 0 and schedule.initialise_at < step <= schedule.until * steps
    if not is_due or not quantizer.dead_entries(threshold=schedule.threshold).any():
        return 0
    return quantizer.revive(gather_rows(model.features(pixels_B3HW)), threshold=schedule.threshold, generator=generator)


def require_same_config(file: Path, config: UniTokConfig) -> None:
    """Refuse a checkpoint of another network; some differences (projection_attention) do not show in the weights."""
    if not file.is_file():
        return  # written by a version that did not store it
    stored = UniTokConfig.from_dict(read_json(file)).to_dict()
    differing = {name: (stored[name], value) for name, value in config.to_dict().items() if stored[name] != value}
    if differing:
        raise ValueError(
            f"{file.parent} must be of the recipe's network, got (stored, recipe) {differing}; choose another output"
        )
