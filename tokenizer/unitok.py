"""The image tokenizer: pixels to codes and back, with everything that training needs.

Comes in: pixels in [-1, 1]. Goes out: codes, pixels, losses. Knows no files but its own folder, no PIL.

Letters: B batch, H W pixels, N positions (row-major), K codebooks, D hidden width, Z code vector width.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tokenizer.codes import fingerprint
from tokenizer.config import UniTokConfig
from tokenizer.images import to_pixels
from tokenizer.layers import NORM_EPS, build_projection, initialise, projection_dtype
from tokenizer.network import Decoder, Encoder, cut_into_patches
from tokenizer.quantizer import MultiCodebookQuantizer
from tokenizer.text_tower import TextTower

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INITIAL_LOGIT_SCALE = math.log(1 / 0.07)  # CLIP, section 2.5
LARGEST_LOGIT_SCALE = math.log(100)


class UniTokOutput(NamedTuple):
    """One training forward."""

    reconstruction_B3HW: Tensor
    """Not clamped, so that gradients live everywhere."""
    codes_BKN: Tensor
    vq_loss: Tensor
    entropy_loss: Tensor
    """Unweighted; 0 unless asked for."""
    usage: Tensor
    """Share of codebook entries that this batch uses, 0 to 1."""
    image_features: Tensor | None = None
    """(B, embed_dim), length 1; None without captions."""
    text_features: Tensor | None = None
    """(B, embed_dim), length 1; None without captions."""
    logit_scale: Tensor | None = None
    """Factor of the contrastive logits, already exponentiated."""


class UniTok(nn.Module):
    """Encoder, projection, quantizer, projection, decoder; a text tower when the config has one."""

    def __init__(self, config: UniTokConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_proj = build_projection(config, config.width, config.vector_width)
        self.quantizer = MultiCodebookQuantizer(
            config.num_codebooks,
            config.codebook_size,
            config.code_width,
            beta=config.vq_beta,
            entropy_temperature=config.entropy_temperature,
        )
        self.post_quant_proj = build_projection(config, config.vector_width, config.width)
        self.decoder = Decoder(config)
        if config.has_text_tower:
            self.text_encoder = TextTower(config)
            self.fc_norm = nn.LayerNorm(config.width, eps=NORM_EPS)
            self.projection = nn.Linear(config.width, config.embed_dim)
            self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))
        initialise(self)

    @property
    def device(self) -> torch.device:
        return self.quantizer.codebooks.device

    @property
    def dtype(self) -> torch.dtype:
        """What the encoder computes in; the quantizer always computes in float32."""
        return self.decoder.last_weight.dtype

    def forward(
        self,
        pixels_B3HW: Tensor,
        text_ids_BT: Tensor | None = None,
        *,
        with_entropy: bool = False,
        continuous: bool = False,
    ) -> UniTokOutput:
        """Reconstruct with gradients through the quantizer; see `encode` and `decode` for use.

        Args:
            text_ids_BT: captions of the pictures; with them the contrastive features are computed.
            with_entropy: compute the entropy loss (costly with large codebooks).
            continuous: do not quantize; for the first steps of training.
        """
        grid = self.grid_of(pixels_B3HW)
        quantized = self.quantizer(self.features(pixels_B3HW), with_entropy=with_entropy, continuous=continuous)
        hidden_BND = self._widen(quantized.vectors_BNZ)
        contrastive = {}
        if text_ids_BT is not None:
            contrastive = {
                "image_features": self._embed(hidden_BND, normalize=True),
                "text_features": self.encode_text(text_ids_BT, normalize=True),
                "logit_scale": self.logit_scale.exp(),
            }
        return UniTokOutput(
            reconstruction_B3HW=self.decoder(hidden_BND.to(self.dtype), grid=grid),
            codes_BKN=quantized.codes_BKN,
            vq_loss=quantized.vq_loss,
            entropy_loss=quantized.entropy_loss,
            usage=quantized.usage,
            **contrastive,
        )

    def features(self, pixels_B3HW: Tensor) -> Tensor:
        """What the quantizer sees, (B, N, Z), float32."""
        rows, columns = self.grid_of(pixels_B3HW)
        if self.config.encoder_scope == "patch":
            patches_M3HW = cut_into_patches(pixels_B3HW, self.config.patch_size)
            return self._features(patches_M3HW).view(len(pixels_B3HW), rows * columns, -1)
        return self._features(pixels_B3HW)

    def _features(self, pixels_B3HW: Tensor) -> Tensor:
        shrunk_B3HW = F.avg_pool2d(pixels_B3HW, self.config.shrink) if self.config.shrink > 1 else pixels_B3HW
        hidden_BND = self.encoder(shrunk_B3HW.to(self.dtype))
        with torch.autocast(hidden_BND.device.type, enabled=False):
            return self.quant_proj(hidden_BND.to(projection_dtype(self.quant_proj))).float()

    def encode_image(self, pixels_B3HW: Tensor, *, normalize: bool = False) -> Tensor:
        """Joint embedding (B, embed_dim) of pictures, through their codes; no gradient reaches the encoder."""
        hidden_BND = self._widen(self.quantizer.lookup(self.encode(pixels_B3HW)))
        return self._embed(hidden_BND, normalize=normalize)

    def encode_text(self, text_ids_BT: Tensor, *, normalize: bool = False) -> Tensor:
        """Joint embedding (B, embed_dim) of captions."""
        self._require_text_tower()
        features_BD = self.text_encoder(text_ids_BT)
        return F.normalize(features_BD, dim=-1) if normalize else features_BD

    def _embed(self, hidden_BND: Tensor, *, normalize: bool) -> Tensor:
        self._require_text_tower()
        features_BD = self.projection(self.fc_norm(hidden_BND.mean(dim=1)))
        return F.normalize(features_BD, dim=-1) if normalize else features_BD

    def _require_text_tower(self) -> None:
        if not self.config.has_text_tower:
            raise ValueError("this tokenizer has no text tower; its embed_dim is 0; train one with embed_dim above 0")

    @torch.no_grad()
    def encode(self, pixels_B3HW: Tensor) -> Tensor:
        """Pixels in [-1, 1] to int64 codes (B, K, N), positions row by row.

        Never in autocast's lower precision: bfloat16 changes a quarter of the bundled tokenizer's codes, and a language
        model must be asked about the same codes that it was trained on.
        """
        with torch.autocast(pixels_B3HW.device.type, enabled=False):
            return self.quantizer.quantize(self.features(pixels_B3HW))

    @torch.no_grad()
    def decode(self, codes_BKN: Tensor, *, grid: tuple[int, int] | None = None) -> Tensor:
        """Codes to pixels in [-1, 1]; `grid` is (rows, columns), a square when left out."""
        grid = self._check_codes(codes_BKN, grid)
        hidden_BND = self._widen(self.quantizer.lookup(codes_BKN))
        return self.decoder(hidden_BND.to(self.dtype), grid=grid).float().clamp(-1.0, 1.0)

    def _widen(self, vectors_BNZ: Tensor) -> Tensor:
        with torch.autocast(vectors_BNZ.device.type, enabled=False):
            return self.post_quant_proj(vectors_BNZ.to(projection_dtype(self.post_quant_proj)))

    def recompute_activations(self, enabled: bool = True) -> None:
        """Trade time for memory in training: the transformers' activations are computed again going backward."""
        self.encoder.blocks.recompute = enabled
        self.decoder.blocks.recompute = enabled

    def contrastive_parameters(self) -> list[nn.Parameter]:
        """What only the contrastive loss trains; freeze these when training without captions."""
        if not self.config.has_text_tower:
            return []
        parts = (self.text_encoder, self.fc_norm, self.projection)
        return [self.logit_scale, *(parameter for part in parts for parameter in part.parameters())]

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Keep the contrastive temperature sane; call after each optimizer step."""
        if self.config.has_text_tower:
            self.logit_scale.clamp_(0.0, LARGEST_LOGIT_SCALE)

    @torch.no_grad()
    def initialise_codes(self, pixels_B3HW: Tensor, *, generator: torch.Generator | None = None) -> None:
        """Place the codebooks on the features of these pictures; call once, before training."""
        self.quantizer.initialise_from(self.features(pixels_B3HW), generator=generator)

    @torch.no_grad()
    def revive_codes(
        self, pixels_B3HW: Tensor, *, threshold: float = 0.03, generator: torch.Generator | None = None
    ) -> int:
        """Put rarely used codebook entries onto features of these pictures; returns how many."""
        if not self.quantizer.has_dead_entries(threshold=threshold):
            return 0
        return self.quantizer.revive(self.features(pixels_B3HW), threshold=threshold, generator=generator)

    def grid_of(self, pixels_B3HW: Tensor) -> tuple[int, int]:
        """Rows and columns of positions of these pixels."""
        patch = self.config.patch_size
        if pixels_B3HW.ndim != 4 or pixels_B3HW.shape[1] != 3:
            raise ValueError(f"pixels must be (B, 3, H, W); got {tuple(pixels_B3HW.shape)}; add or move axes")
        height, width = pixels_B3HW.shape[2:]
        if height % patch or width % patch or not height or not width:
            raise ValueError(
                f"both sides of a picture must be multiples of {patch}; got {height} x {width}; resize or crop it"
            )
        return height // patch, width // patch

    def _check_codes(self, codes_BKN: Tensor, grid: tuple[int, int] | None) -> tuple[int, int]:
        if codes_BKN.ndim != 3 or codes_BKN.shape[1] != self.config.num_codebooks:
            raise ValueError(
                f"codes must be (B, {self.config.num_codebooks}, N); got {tuple(codes_BKN.shape)}; "
                "are they from another tokenizer?"
            )
        if codes_BKN.numel() and not 0 <= int(codes_BKN.min()) <= int(codes_BKN.max()) < self.config.codebook_size:
            raise ValueError(
                f"codes must lie in 0..{self.config.codebook_size - 1}; got {int(codes_BKN.min())}.."
                f"{int(codes_BKN.max())}; are they from another tokenizer?"
            )
        num_positions = codes_BKN.shape[2]
        if grid is None:
            grid = (math.isqrt(num_positions),) * 2
        if grid[0] * grid[1] != num_positions:
            raise ValueError(
                f"{num_positions} positions do not fill a grid of {grid[0]} x {grid[1]}; pass grid=(rows, columns)"
            )
        return grid

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).write_text(json.dumps(self.config.to_dict(), indent=2) + "\n", encoding="utf-8")
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> UniTok:
        """Read a folder written by `save_pretrained`, in evaluation mode. Projections and quantizer stay float32."""
        folder = Path(folder)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"no image tokenizer in this folder; {folder / name} does not exist; "
                    "give the folder that save_pretrained or `mllm convert` wrote"
                )
        config = UniTokConfig.from_dict(json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")))
        model = build_empty(config)
        place = torch.device(device or "cpu")
        # safetensors knows no "cpu:0", which a launcher gives to its first process
        name = "cpu" if place.type == "cpu" else str(place)
        model.load_state_dict(load_file(folder / WEIGHTS_FILE, device=name), assign=True)
        if dtype is not None:
            model.encoder.to(dtype)
            model.decoder.to(dtype)
        return model.eval()

    @property
    def encoding_half(self) -> dict[str, nn.Module]:
        """The parts that codes depend on, by name; the rest turns codes into pixels."""
        return {"encoder": self.encoder, "quant_proj": self.quant_proj, "quantizer": self.quantizer}

    def fingerprint(self) -> str:
        """16 hex digits that change exactly when codes could change: sizes and weights of the encoding half."""
        shrunk = f" {self.config.shrink}" if self.config.shrink > 1 else ""
        contents: list[str | Tensor] = [f"{self.config.encoder_scope}{shrunk}"]
        for part_name, part in self.encoding_half.items():
            for name, parameter in sorted(part.named_parameters()):
                contents += [f"{part_name}.{name} {tuple(parameter.shape)}", parameter]
        return fingerprint(contents)


class EncodedImage(NamedTuple):
    """The codes of one image."""

    codes_KN: np.ndarray
    """uint16, positions row by row."""
    grid: tuple[int, int]
    """Rows and columns of positions."""


def encode_images(images: Iterable[Tensor], tokenizer: UniTok, *, batch_size: int) -> Iterator[EncodedImage]:
    """Encode images of any sizes in batches of one size; the results come in the order of the images.

    Args:
        images: (3, H, W) each, uint8 or float in [-1, 1]. At most `batch_size` of each size are held at a time.
    """

    def encode(batch: list[Tensor]) -> list[EncodedImage]:
        images_B3HW = torch.stack(batch)
        codes_BKN = _codes_of(images_B3HW, tokenizer).cpu().numpy().astype(np.uint16)
        return [EncodedImage(codes_KN, tokenizer.grid_of(images_B3HW)) for codes_KN in codes_BKN]

    return _in_batches(images, encode, key=lambda image_3HW: image_3HW.shape, batch_size=batch_size)


def decode_images(images: Iterable[EncodedImage], tokenizer: UniTok, *, batch_size: int) -> Iterator[Tensor]:
    """Decode images of any sizes in batches of one size: pixels (3, H, W) in [-1, 1], in the order of the images."""

    def decode(batch: list[EncodedImage]) -> list[Tensor]:
        codes_BKN = torch.from_numpy(np.stack([image.codes_KN for image in batch]).astype(np.int64))
        return list(tokenizer.decode(codes_BKN.to(tokenizer.device), grid=batch[0].grid))

    return _in_batches(images, decode, key=lambda image: image.grid, batch_size=batch_size)


def _codes_of(images_B3HW: Tensor, tokenizer: UniTok) -> Tensor:
    """Codes of uint8 or float images. Where codes depend on single patches, equal patches are encoded once: most of a
    drawing is flat background.
    """
    if images_B3HW.dtype != torch.uint8:
        return tokenizer.encode(images_B3HW.to(tokenizer.device))
    if tokenizer.config.encoder_scope != "patch":
        return tokenizer.encode(to_pixels(images_B3HW.to(tokenizer.device)))
    patches_M3HW = cut_into_patches(images_B3HW, tokenizer.config.patch_size).contiguous().cpu()
    rows_MP = patches_M3HW.flatten(1).numpy()
    as_scalars_M = rows_MP.view(np.dtype((np.void, rows_MP.shape[1])))[:, 0]  # np.unique sorts scalars much faster
    _, first_U, which_M = np.unique(as_scalars_M, return_index=True, return_inverse=True)
    codes_UK = tokenizer.encode(to_pixels(patches_M3HW[first_U].to(tokenizer.device)))[:, :, 0]
    codes_MK = codes_UK[torch.from_numpy(which_M)]
    return codes_MK.view(len(images_B3HW), -1, codes_UK.shape[1]).transpose(1, 2)


Item, Result = TypeVar("Item"), TypeVar("Result")


def _in_batches(
    items: Iterable[Item],
    compute: Callable[[list[Item]], list[Result]],
    *,
    key: Callable[[Item], Hashable],
    batch_size: int,
) -> Iterator[Result]:
    """Compute on batches of items with equal keys; yield the results in the order of the items."""
    waiting: dict[Hashable, list[tuple[int, Item]]] = defaultdict(list)
    done: dict[int, Result] = {}
    next_index = 0

    def finish(group: list[tuple[int, Item]]) -> None:
        indices, batch = zip(*group, strict=True)
        done.update(zip(indices, compute(list(batch)), strict=True))
        group.clear()

    for index, item in enumerate(items):
        group = waiting[key(item)]
        group.append((index, item))
        if len(group) == batch_size:
            finish(group)
        while next_index in done:
            yield done.pop(next_index)
            next_index += 1
    for group in filter(None, waiting.values()):
        finish(group)
    yield from (done[index] for index in sorted(done))


def build_empty(config: UniTokConfig) -> UniTok:
    """A tokenizer without storage, to be filled by `load_state_dict(..., assign=True)`."""
    with torch.device("meta"):
        return UniTok(config)
