"""The image tokenizer UniTok (arXiv:2502.20321): pixels to codes and back, and what training needs.

Pixels in [-1, 1] come in; codes, pixels and losses go out. A tokenizer is saved as a folder with config and weights.

Letters: B batch, H W pixels, N positions (row-major), K codebooks, D hidden width, Z code vector width, M = B * N
patches, U distinct patches.
"""

from __future__ import annotations

import copy
import json
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from tokenizer import layers
from tokenizer.codes import fingerprint
from tokenizer.config import UniTokConfig
from tokenizer.images import to_pixels
from tokenizer.layers import Decoder, FoldedUpsample, Upsample, cut_into_patches
from tokenizer.quantizer import MultiCodebookQuantizer
from tokenizer.text_tower import TextTower
from tokenizer.weights import read_tensors, require_same_tensors

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
AVERAGE_FILE = "custom_checkpoint_0.pkl"  # in a checkpoint of a training: the average of the weights, as in `final`
INITIAL_LOGIT_SCALE = math.log(1 / 0.07)  # CLIP, section 2.5
LARGEST_LOGIT_SCALE = math.log(100)


class UniTokOutput(NamedTuple):
    reconstruction_B3HW: Tensor  # not clamped, so that gradients live everywhere
    vq_loss: Tensor
    entropy_loss: Tensor  # unweighted; 0 unless asked for
    image_features: Tensor | None = None  # (B, embed_dim), length 1; None without captions
    text_features: Tensor | None = None
    logit_scale: Tensor | None = None  # factor of the contrastive logits, already exponentiated


class UniTok(nn.Module):
    """Encoder, projection, quantizer, projection, decoder; a text tower if the config has one."""

    ready_decoder: Decoder | None = None  # what `decode` runs after `for_inference`; neither saved nor trained

    def __init__(self, config: UniTokConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = layers.Encoder(config)
        self.quant_proj = layers.build_projection(config, config.width, config.vector_width)
        sizes, beta = (config.num_codebooks, config.codebook_size, config.code_width), config.vq_beta
        self.quantizer = MultiCodebookQuantizer(*sizes, beta=beta, entropy_temperature=config.entropy_temperature)
        self.post_quant_proj = layers.build_projection(config, config.vector_width, config.width)
        self.decoder = Decoder(config)
        if config.has_text_tower:
            self.text_encoder = TextTower(config)
            self.fc_norm = nn.LayerNorm(config.width, eps=layers.NORM_EPS)
            self.projection = nn.Linear(config.width, config.embed_dim)
            self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))
        layers.initialise(self)

    @property
    def device(self) -> torch.device:
        return self.quantizer.codebooks.device

    @property
    def dtype(self) -> torch.dtype:
        """What encoder and decoder compute in; the quantizer always computes in float32."""
        return self.decoder.last_weight.dtype

    def forward(
        self, pixels_B3HW: Tensor, text_ids_BT: Tensor | None = None, *, with_entropy: bool = False
    ) -> UniTokOutput:
        """Reconstruct, with gradients through the quantizer; `encode` and `decode` are for inference. With captions of
        the images the contrastive features are computed, `with_entropy` the entropy loss (costly with large codebooks).
        """
        vectors_BNZ, _, *losses = self.quantizer(self.features(pixels_B3HW), with_entropy=with_entropy)
        hidden_BND = project(self.post_quant_proj, vectors_BNZ)
        contrastive: tuple[Tensor, ...] = ()
        if text_ids_BT is not None:
            features = self._embed(hidden_BND, normalize=True), self.encode_text(text_ids_BT, normalize=True)
            contrastive = (*features, self.logit_scale.exp())
        reconstruction_B3HW = self.decoder(hidden_BND.to(self.dtype), grid=self.grid_of(pixels_B3HW))
        return UniTokOutput(reconstruction_B3HW, *losses, *contrastive)

    def features(self, pixels_B3HW: Tensor) -> Tensor:
        """What the quantizer sees, (B, N, Z), float32."""
        rows, columns = self.grid_of(pixels_B3HW)
        batch_size, shrink = len(pixels_B3HW), self.config.shrink
        if self.config.encoder_scope == "patch":
            pixels_B3HW = cut_into_patches(pixels_B3HW, self.config.patch_size)
        if shrink > 1:
            pixels_B3HW = F.avg_pool2d(pixels_B3HW, shrink)
        features = project(self.quant_proj, self.encoder(pixels_B3HW.to(self.dtype))).float()
        return features.view(batch_size, rows * columns, -1)

    def encode_image(self, pixels_B3HW: Tensor, *, normalize: bool = False) -> Tensor:
        """Joint embedding (B, embed_dim) of images, through their codes; no gradient reaches the encoder."""
        vectors_BNZ = self.quantizer.lookup(self.encode(pixels_B3HW))
        return self._embed(project(self.post_quant_proj, vectors_BNZ), normalize=normalize)

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
            raise ValueError("embed_dim must be > 0 for text features, got 0; use a tokenizer that has a text tower")

    @torch.no_grad()
    def encode(self, pixels_B3HW: Tensor) -> Tensor:
        """Pixels in [-1, 1] to int64 codes (B, K, N), positions row by row. Autocast is off here: bfloat16 changes a
        quarter of the bundled tokenizer's codes, and a language model must see the codes that it was trained on."""
        with torch.autocast(pixels_B3HW.device.type, enabled=False):
            return self.quantizer.quantize(self.features(pixels_B3HW))

    @torch.no_grad()
    def decode(self, codes_BKN: Tensor, *, grid: tuple[int, int] | None = None) -> Tensor:
        """Codes to pixels in [-1, 1]; `grid` is (rows, columns), a square by default."""
        grid = self._check_codes(codes_BKN, grid)
        hidden_BND = project(self.post_quant_proj, self.quantizer.lookup(codes_BKN))
        decoder = self.ready_decoder or self.decoder
        return decoder(hidden_BND.to(decoder.last_weight.dtype), grid=grid).float().clamp(-1.0, 1.0)

    def for_inference(self, dtype: torch.dtype | None = None) -> UniTok:
        """Fold the upsampling kernels of the decoder once. What is saved stays the same. Moving or training the
        tokenizer undoes it. `dtype`: of the decoder, which gets weights of its own then; the encoder keeps its number
        format, as codes depend on it."""
        shared = {id(parameter): parameter for parameter in self.decoder.parameters()} if dtype is None else {}
        decoder = copy.deepcopy(self.decoder, shared)
        for module in list(decoder.modules()):
            for name, child in module.named_children():
                if isinstance(child, Upsample):
                    setattr(module, name, FoldedUpsample(child))
        self.__dict__["ready_decoder"] = decoder.eval() if dtype is None else decoder.eval().to(dtype)
        return self

    def train(self, mode: bool = True) -> UniTok:
        if mode:
            self.__dict__.pop("ready_decoder", None)
        return super().train(mode)

    def _apply(self, *args: Any, **options: Any) -> UniTok:
        self.__dict__.pop("ready_decoder", None)
        return super()._apply(*args, **options)

    def recompute_activations(self, enabled: bool = True) -> None:
        """Activation checkpointing: recompute the transformers' activations in the backward pass, to save memory."""
        self.encoder.blocks.recompute = self.decoder.blocks.recompute = enabled

    def contrastive_parameters(self) -> list[nn.Parameter]:
        """Parameters that only the contrastive loss trains; freeze them when training without captions."""
        if not self.config.has_text_tower:
            return []
        parts = (self.text_encoder, self.fc_norm, self.projection)
        return [self.logit_scale, *(parameter for part in parts for parameter in part.parameters())]

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Bound the contrastive temperature as CLIP does; call after each optimizer step."""
        if self.config.has_text_tower:
            self.logit_scale.clamp_(0.0, LARGEST_LOGIT_SCALE)

    def grid_of(self, pixels_B3HW: Tensor) -> tuple[int, int]:
        patch = self.config.patch_size
        if pixels_B3HW.ndim != 4 or pixels_B3HW.shape[1] != 3:
            raise ValueError(f"pixels must be (B, 3, H, W), got {tuple(pixels_B3HW.shape)}; add or move axes")
        height, width = pixels_B3HW.shape[2:]
        if height % patch or width % patch or not height or not width:
            raise ValueError(
                f"height and width must be multiples of {patch}, got {height} x {width}; resize or crop the image"
            )
        return height // patch, width // patch

    def _check_codes(self, codes_BKN: Tensor, grid: tuple[int, int] | None) -> tuple[int, int]:
        num_codebooks, codebook_size = self.config.num_codebooks, self.config.codebook_size
        advice = "use codes of this tokenizer"
        if codes_BKN.ndim != 3 or codes_BKN.shape[1] != num_codebooks:
            raise ValueError(f"codes must be (B, {num_codebooks}, N), got {tuple(codes_BKN.shape)}; {advice}")
        if codes_BKN.numel() and not 0 <= int(codes_BKN.min()) <= int(codes_BKN.max()) < codebook_size:
            found = f"{int(codes_BKN.min())} to {int(codes_BKN.max())}"
            raise ValueError(f"codes must be 0 to {codebook_size - 1}, got {found}; {advice}")
        num_positions = codes_BKN.shape[2]
        rows, columns = grid or (math.isqrt(num_positions),) * 2
        if rows * columns != num_positions:
            raise ValueError(
                f"grid must have {num_positions} positions, as there are codes, got {rows} x {columns}; "
                "pass grid=(rows, columns)"
            )
        return rows, columns

    def save_pretrained(self, folder: str | Path) -> None:
        save_tokenizer(folder, self.config, self.state_dict())

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> UniTok:
        """Read a folder that `save_pretrained` wrote, or the average in a checkpoint of a training, in evaluation mode.
        `dtype`: of encoder and decoder; projections and quantizer stay float32, so that codes stay the same."""
        folder = Path(folder)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"an image tokenizer's folder must have {name}, got none in {folder}; "
                    "give one that `mllm convert` or save_pretrained wrote"
                )
        model = build_empty(UniTokConfig.from_file(folder / CONFIG_FILE))
        if (folder / AVERAGE_FILE).is_file():
            average = read_tensors(folder / AVERAGE_FILE)
            state = {name[7:]: value for name, value in average.items() if name.startswith("module.")}
        else:
            state = dict(read_tensors(folder / WEIGHTS_FILE))
        require_same_tensors(state, model.state_dict(), source=folder)
        model.fill(state)
        if dtype is not None:
            model.encoder.to(dtype)
            model.decoder.to(dtype)
        return model if device is None else model.to(device)

    def fill(self, state: Mapping[str, Tensor]) -> UniTok:
        """Take these tensors, not copies of them, as weights; for a tokenizer that `build_empty` made."""
        self.load_state_dict(state, assign=True)
        return self.eval()

    @property
    def encoding_half(self) -> dict[str, nn.Module]:
        """The modules that codes depend on, by name; the others turn codes into pixels."""
        return {"encoder": self.encoder, "quant_proj": self.quant_proj, "quantizer": self.quantizer}

    def fingerprint(self) -> str:
        """16 hex digits that change exactly when codes could change: sizes and weights of the encoding half."""
        scope = {"image": "picture"}.get(self.config.encoder_scope, self.config.encoder_scope)  # as in existing shards
        contents: list[str | Tensor] = [f"{scope} {self.config.shrink}" if self.config.shrink > 1 else scope]
        for part_name, part in self.encoding_half.items():
            for name, parameter in sorted(part.named_parameters()):
                contents += [f"{part_name}.{name} {tuple(parameter.shape)}", parameter]
        return fingerprint(contents)


def project(projection: nn.Module, hidden_BNI: Tensor) -> Tensor:
    """A projection in the precision of its weights, whatever autocast says."""
    with torch.autocast(hidden_BNI.device.type, enabled=False):
        return projection(hidden_BNI.to(next(projection.parameters()).dtype))


def build_empty(config: UniTokConfig) -> UniTok:
    """A tokenizer without storage, for `fill`."""
    with torch.device("meta"):
        return UniTok(config)


def save_tokenizer(folder: str | Path, config: UniTokConfig, state: Mapping[str, Tensor]) -> None:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


class EncodedImage(NamedTuple):
    """The codes of one image."""

    codes_KN: np.ndarray  # uint16, positions row by row
    grid: tuple[int, int]  # rows and columns of positions


def encode_images(images: Iterable[Tensor], tokenizer: UniTok, *, batch_size: int) -> Iterator[EncodedImage]:
    """Encode images of any sizes in batches of one size; the results come in the order of the images. `images`: (3, H,
    W) each, uint8 or float in [-1, 1]. At most `batch_size` of each size are held at a time."""
    codebook_size = tokenizer.config.codebook_size
    assert codebook_size <= 2**16, f"codes are stored as uint16, got codebooks of {codebook_size} entries"

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
    drawing is flat background."""
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


def _in_batches(
    items: Iterable[Any], compute: Callable[[list[Any]], list[Any]], *, key: Callable[[Any], Hashable], batch_size: int
) -> Iterator[Any]:
    """Compute on batches of items with equal keys; yield the results in the order of the items."""
    waiting: dict[Hashable, list[tuple[int, Any]]] = defaultdict(list)
    done: dict[int, Any] = {}
    next_index = 0

    def finish(group: list[tuple[int, Any]]) -> None:
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
