"""What is measured while the tokenizer trains: sheets of reconstructions, zero-shot accuracy, rFID at the end.

In: the tokenizer as it would be shipped, and folders of pictures. Out: numbers, and pictures in folders. The pictures
of a folder are shared out over the processes; files of others are never deleted.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as distributed
from accelerate import PartialState
from torch import Tensor

from tokenizer.across_ranks import num_ranks
from tokenizer.captions import EncodeCaptions
from tokenizer.fidelity import fidelity
from tokenizer.image_processor import ImageProcessor, open_image, to_images
from tokenizer.model import UniTok
from tokenizer.picture_folders import pictures_in, png_files, read_classes
from tokenizer.picture_sheet import reconstruction_sheet
from tokenizer.zero_shot import TEMPLATES, class_vectors, read_templates, right_answers
from train.image_tokenizer.recipe import EvaluationRecipe

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
        self.sheet_files = pictures_in(recipe.pictures)[:ON_A_SHEET] if recipe.pictures else []
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
            pixels_B3HW = samples_B3HW.float().div(127.5).sub(1)
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
            right += right_answers(model, pixels_B3HW, torch.tensor([label for _, label in part]), classes_ND)
        if num_ranks() > 1:
            distributed.all_reduce(right)
        top1, top5 = (right.double() / len(labelled)).tolist()
        return {"zero_shot_top1": top1, "zero_shot_top5": top5}

    def _labelled(self) -> list[tuple[Path, int]]:
        assert self.recipe.imagenet_val is not None
        folders = enumerate(self.classes)
        return [(file, label) for label, name in folders for file in pictures_in(self.recipe.imagenet_val / name)]

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
