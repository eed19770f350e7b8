"""The unified model: one decoder over a sequence of text tokens and image positions, with a head for each.

In: token ids with placeholders at image positions, and the K codes of every image position in reading order. Out: text
logits, code logits, and the loss when labels are given. It does not know strings, pictures or sampling.

Alignment, once and for all: the hidden state at t predicts place t + 1, be it a text token (lm_head) or the K codes of
an image position (code head). Labels and codes stand at their own place; the shift happens here.

Letters: B batch, T sequence, D hidden width, V text vocabulary, P image positions in the batch, K codebooks, C codes,
L labelled text tokens, M learned image positions.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    GenerationMixin,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from mllm.checkpoint import ModelWithCard, is_released_folder, open_released, own_memory
from mllm.config import MLLMConfig
from mllm.embedding import POSITION_STD, PositionEmbedding, ProjectedEmbedding, build_embedding
from mllm.heads import DepthTransformerHead, PerCodebookLinear, build_head
from mllm.sequence import IGNORED
from tokenizer.layers import ProjectionAttention

# The training loss, from logits and targets alone: text cross-entropy, code cross-entropy per codebook, z-loss.
#
# With w the weight of a text token, z the weight of the z-loss, L labelled text tokens and P learned image positions:
#
#     total = ( w * sum of text CE + sum of code CE + z * sum of (max logit)^2 ) / ( w * L + P * K )
#
# that is, every text token and every code counts alike (for w = 1), as upstream does within a batch. To count alike
# over
# accumulation steps and ranks, divide by the number of items of ALL of them: `num_items` = sum of `count_items` of
# every
# micro-batch on every rank. Frameworks average gradients over ranks, so the trainer multiplies the loss by the world
# size
# (transformers does so when `average_tokens_across_devices` is set) and sums over accumulation steps undivided.
# Upstream's z-term is the square of the largest logit, not of the logsumexp.
#
# Letters: L labelled text tokens, P learned image positions, V text vocabulary, K codebooks, C codes per codebook.


@dataclass(frozen=True, kw_only=True, slots=True)
class LossParts:
    """The loss and what it is made of. All but `total` are for the log: detached, means over this batch alone."""

    total: Tensor  # what is differentiated
    text: Tensor  # cross-entropy per labelled text token; 0 without any
    image: Tensor  # cross-entropy per code; 0 without any
    z: Tensor  # weighted z-term per code
    image_per_codebook_K: Tensor
    num_text: int  # L
    num_image: int  # P * K


def count_items(labels_BT: Tensor, code_targets_P: Tensor, *, num_codebooks: int, text_weight: float = 1.0) -> Tensor:
    """What a batch weighs in the loss (float, 0-d): the divisor of `total`. Labels at t = 0 predict nothing."""
    num_text = (labels_BT[:, 1:] != IGNORED).sum()
    return num_text * text_weight + code_targets_P.sum() * num_codebooks


def compute_loss(
    text_logits_LV: Tensor,
    labels_L: Tensor,
    code_logits_PKC: Tensor,
    codes_PK: Tensor,
    *,
    z_weight: float,
    text_weight: float = 1.0,
    num_items: Tensor | float | None = None,
) -> LossParts:
    """All parts from rows that are already aligned: logits row i predicts target row i. L or P may be 0.

    Args:
        num_items: what to divide by; None: the items of this batch.
    """
    text_sum = sum_text_loss(text_logits_LV, labels_L)
    image_sum_K, square_sum = sum_code_loss(code_logits_PKC, codes_PK)
    return weigh(
        text_sum,
        image_sum_K,
        square_sum * z_weight,
        num_text=labels_L.numel(),
        num_positions=codes_PK.shape[0],
        text_weight=text_weight,
        num_items=num_items,
    )


def sum_text_loss(logits_LV: Tensor, labels_L: Tensor) -> Tensor:
    """Cross-entropy of all rows together, in float32."""
    return F.cross_entropy(logits_LV.float(), labels_L, reduction="sum")


def sum_code_loss(logits_PKC: Tensor, codes_PK: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy (K,) of all positions together, and the sum of the squared largest logits."""
    logits_PKC = logits_PKC.float()
    loss_PK = F.cross_entropy(logits_PKC.flatten(0, 1), codes_PK.flatten(), reduction="none").view(codes_PK.shape)
    largest_PK = logits_PKC.max(dim=-1).values  # cheaper backward than amax: no ties
    return loss_PK.sum(dim=0), largest_PK.square().sum()


def weigh(
    text_sum: Tensor,
    image_sum_K: Tensor,
    z_sum: Tensor,
    *,
    num_text: int,
    num_positions: int,
    text_weight: float = 1.0,
    num_items: Tensor | float | None = None,
) -> LossParts:
    """The parts from their sums; `z_sum` comes weighted."""
    num_image = num_positions * image_sum_K.shape[0]
    if num_items is None:
        num_items = max(text_weight * num_text + num_image, 1)
    total = (text_sum * text_weight + image_sum_K.sum() + z_sum) / num_items
    with torch.no_grad():
        return LossParts(
            total=total,
            text=text_sum.detach() / max(num_text, 1),
            image=image_sum_K.detach().sum() / max(num_image, 1),
            z=z_sum.detach() / max(num_image, 1),
            image_per_codebook_K=image_sum_K.detach() / max(num_positions, 1),
            num_text=num_text,
            num_image=num_image,
        )


# The training loss without ever holding the logits of all places.
#
# Rows are cut into slices; the backward pass computes each slice once more (gradient checkpointing), head and all. The
# number of slices depends on the shape of the batch alone, not on how many of its places are learned: every process
# calls
# a head equally often, as sharded weights (ZeRO-3) require. Slices may be empty. Knows no backbone.
#
# Letters: L labelled text tokens, M learned image positions, R rows, D hidden width, K codebooks.


FLOAT32 = 4
"""Bytes of a logit in the loss."""


@dataclass(frozen=True, slots=True)
class SlicedHeads:
    """Both heads of a model over slices of rows."""

    lm_head: nn.Module
    code_head: nn.Module
    num_places: int
    """Of the batch: as many rows as there could be."""
    max_bytes: int
    """What the logits of a slice may take."""

    def loss(
        self,
        hidden_LD: Tensor,
        labels_L: Tensor,
        hidden_MD: Tensor,
        codes_MK: Tensor,
        config: MLLMConfig,
        num_items: Tensor | float | None,
    ) -> LossParts:
        """The same parts as from all logits at once."""
        (text_sum,) = self.add_up(
            lambda hidden_RD, labels_R: (sum_text_loss(self.lm_head(hidden_RD), labels_R),),
            hidden_LD,
            labels_L,
            logits_per_row=config.vocab_size,
        )
        image_sum_K, square_sum = self.add_up(
            lambda hidden_RD, codes_RK: sum_code_loss(self.code_head(hidden_RD, codes_RK), codes_RK),
            hidden_MD,
            codes_MK,
            logits_per_row=config.num_codebooks * config.codebook_size,
        )
        return weigh(
            text_sum,
            image_sum_K,
            square_sum * config.z_loss_weight,
            num_text=labels_L.numel(),
            num_positions=codes_MK.shape[0],
            text_weight=config.text_loss_weight,
            num_items=num_items,
        )

    def add_up(
        self,
        sums_of: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
        hidden_RD: Tensor,
        targets_R: Tensor,
        *,
        logits_per_row: int,
    ) -> list[Tensor]:
        """`sums_of(hidden, targets)` of all rows, added up slice by slice."""
        rows = max(self.max_bytes // (FLOAT32 * logits_per_row), 1)
        slices = -(-self.num_places // rows)
        parts = zip(hidden_RD.tensor_split(slices), targets_R.tensor_split(slices), strict=True)
        sums = [checkpoint(sums_of, hidden, targets, use_reentrant=False) for hidden, targets in parts]
        return [torch.stack(values).sum(dim=0) for values in zip(*sums, strict=True)]


@dataclass
class MLLMOutput(ModelOutput):
    """What `MLLMForConditionalGeneration` returns."""

    loss: Tensor | None = None
    logits: Tensor | None = None  # (B, T, V); with labels (L, V), one row per labelled token
    code_logits: Tensor | None = None  # (M, K, C), with labels only
    hidden: Tensor | None = None  # (B, T, D), after the last norm
    past_key_values: Cache | None = None
    loss_parts: LossParts | None = None


class MLLMForConditionalGeneration(ModelWithCard, PreTrainedModel, GenerationMixin):
    """A decoder backbone, the embedding of image codes, and the codebook head."""

    config_class = MLLMConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # a plain Trainer counts text labels only; ours counts codes too and passes the sum
    input_modalities = ("text", "image")
    output_modalities = ("text", "image")
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _no_split_modules = ["LlamaDecoderLayer", "DepthTransformerHead", "ProjectedEmbedding", "SummedEmbedding"]
    _skip_keys_device_placement = ["past_key_values"]
    _tied_weights_keys = {"lm_head.weight": "backbone.embed_tokens.weight"}

    def __init__(self, config: MLLMConfig) -> None:
        super().__init__(config)
        self.backbone = AutoModel.from_config(config.text_config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.code_embedding = build_embedding(config)
        self.code_head = build_head(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise what the backbone does not initialise itself.

        | what                                   | values                                              |
        |----------------------------------------|-----------------------------------------------------|
        | linear layers, embeddings              | normal, std initializer_range of the backbone; bias 0 |
        | linear layers of the projected embedding | normal, std 1 / sqrt(inputs): its inputs have norm sqrt(K) |
        | vectors of places                      | normal, std POSITION_STD: beside content of size 1     |
        | norms                                  | weight 1, bias 0                                    |
        | q_bias, v_bias, zero_k_bias            | 0                                                   |
        | codebooks                              | normal (replaced by the image tokenizer's)          |
        | rope tables                            | cos, sin                                            |
        """
        match module:
            case ProjectedEmbedding():
                init.normal_(module.codebooks)
                init.zeros_(module.codebook_usage)
                for linear in module.modules():
                    if isinstance(linear, nn.Linear):
                        init.normal_(linear.weight, std=linear.in_features**-0.5)
            case PositionEmbedding():
                for table in module.parameters(recurse=False):
                    init.normal_(table, std=POSITION_STD)
            case ProjectionAttention():
                init.zeros_(module.q_bias)
                init.zeros_(module.v_bias)
                init.zeros_(module.zero_k_bias)
            case PerCodebookLinear():
                init.normal_(module.weight, std=self.config.text_config.initializer_range)
                init.zeros_(module.bias)
            case DepthTransformerHead():
                module.fill_rope_tables()
            case _:
                super()._init_weights(module)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None = None, *args: Any, **kwargs: Any
    ) -> MLLMForConditionalGeneration:
        """As transformers has it; a folder in the released layout (`mini_gemini`) is read as it is, strictly."""
        if not is_released_folder(pretrained_model_name_or_path):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        folder = Path(pretrained_model_name_or_path)
        config = kwargs.pop("config", None)
        fields = {name: kwargs.pop(name) for name in list(kwargs) if name in MLLMConfig.__annotations__}
        if not isinstance(config, MLLMConfig):
            config = MLLMConfig.from_pretrained(folder, **fields)
        tensors = dict(open_released(folder, cls, config))
        loaded = super().from_pretrained(None, *args, config=config, state_dict=tensors, **kwargs)
        own_memory(loaded[0] if isinstance(loaded, tuple) else loaded, tensors)
        return loaded

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    def embed(self, input_ids_BT: Tensor, codes_PK: Tensor | None, image_lengths_I: Tensor | None) -> Tensor:
        """Embed text tokens and, at the placeholders, image positions in reading order; (B, T, D)."""
        is_image_BT = input_ids_BT == self.config.image_token_id
        hidden_BTD = self.get_input_embeddings()(input_ids_BT.masked_fill(is_image_BT, self.config.pad_token_id))
        places_P = is_image_BT.flatten().nonzero()[:, 0]
        num_codes = 0 if codes_PK is None else codes_PK.shape[0]
        if places_P.shape[0] != num_codes:
            raise ValueError(
                f"image placeholders and codes do not match: found {places_P.shape[0]} placeholders and {num_codes} "
                "code rows; pass the codes of every image position in the batch, in reading order"
            )
        if num_codes == 0:
            is_joint = self.training or codes_PK is not None  # a batch, of which others hold images
            return hidden_BTD + self._touch_code_embedding(input_ids_BT.device) if is_joint else hidden_BTD
        columns_I = None
        if self.config.image_position_embedding and self.config.image_layout == "grid":
            columns_I = self._read_columns(input_ids_BT, places_P, image_lengths_I)
        embedded_PD = self.code_embedding(codes_PK, image_lengths_I, columns_I=columns_I)
        return hidden_BTD.flatten(0, 1).index_copy(0, places_P, embedded_PD.to(hidden_BTD.dtype)).view_as(hidden_BTD)

    def _read_columns(self, input_ids_BT: Tensor, places_P: Tensor, image_lengths_I: Tensor) -> Tensor:
        """Columns (I,) of images of the grid layout, from the size token before their first positions."""
        lengths_I = image_lengths_I.to(places_P.device)
        first_I = places_P[lengths_I.cumsum(0) - lengths_I]
        return input_ids_BT.flatten()[first_I - 1] - self.config.first_column_size_id + 1

    def _touch_code_embedding(self, device: torch.device) -> Tensor:
        """Zero that depends on the code embedding, so that ranks without images take part in gradient exchange."""
        codes_1K = torch.zeros(1, self.config.num_codebooks, dtype=torch.int64, device=device)
        return self.code_embedding(codes_1K, torch.ones(1, dtype=torch.int64)).sum() * 0.0

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        segment_ids: Tensor | None = None,
        labels: Tensor | None = None,
        codes: Tensor | None = None,
        image_lengths: Tensor | None = None,
        code_targets: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        num_items_in_batch: Tensor | float | None = None,
        max_logits_bytes: int | None = None,
        **kwargs: object,
    ) -> MLLMOutput:
        """One pass. With labels: the loss (see mllm/model.py); without: text logits.

        Args:
            attention_mask: (B, T) of real places, or (B, 1, T, S) boolean and used as given.
            segment_ids: (B, T) packed samples 1, 2, ...; 0 is padding. No sample sees another.
            codes: (P, K) of all image positions of the batch, in reading order.
            code_targets: (P,) which of them are learned; default: none.
            logits_to_keep: text logits of that many last places only; 0 means all.
            num_items_in_batch: divisor of the loss, counted over accumulation steps and ranks.
            max_logits_bytes: compute the loss in slices whose logits take no more; no logits are returned then.
        """
        if inputs_embeds is None:
            inputs_embeds = self.embed(input_ids, codes, image_lengths)
        if segment_ids is not None:
            attention_mask = packed_mask(segment_ids)
        outputs = self.backbone(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=bool(use_cache) if labels is not None else use_cache,
            **kwargs,
        )
        hidden_BTD, cache = outputs.last_hidden_state, outputs.past_key_values
        if labels is None:
            logits = self.lm_head(hidden_BTD[:, -logits_to_keep:])
            return MLLMOutput(logits=logits, hidden=hidden_BTD, past_key_values=cache)
        hidden_LD, labels_L = text_rows(hidden_BTD, labels)
        hidden_MD, targets_MK = self._code_rows(hidden_BTD, input_ids, codes, code_targets)
        if max_logits_bytes is not None:
            heads = SlicedHeads(self.lm_head, self.code_head, labels.numel(), max_logits_bytes)
            parts = heads.loss(hidden_LD, labels_L, hidden_MD, targets_MK, self.config, num_items_in_batch)
            return MLLMOutput(loss=parts.total, hidden=hidden_BTD, past_key_values=cache, loss_parts=parts)
        logits_LV = self.lm_head(hidden_LD)
        logits_MKC = self._code_logits(hidden_MD, targets_MK, hidden_BTD)
        parts = compute_loss(
            logits_LV,
            labels_L,
            logits_MKC,
            targets_MK,
            z_weight=self.config.z_loss_weight,
            text_weight=self.config.text_loss_weight,
            num_items=num_items_in_batch,
        )
        return MLLMOutput(
            loss=parts.total,
            logits=logits_LV,
            code_logits=logits_MKC,
            hidden=hidden_BTD,
            past_key_values=cache,
            loss_parts=parts,
        )

    def generate(self, input_ids: Tensor | None = None, **options: Any) -> Any:
        """Answer prompts in text, an image, or both (`generation_mode`); options in mllm/generate.py.

        Takes what the processor returns. Returns ids (S, T) of prompts and answers, the codes (S, N * K) of images, or
        with `return_dict_in_generate=True` and for mixed answers a `GenerateOutput`.
        """
        from mllm.generate import GenerateRequest, generate_from_inputs

        return generate_from_inputs(self, GenerateRequest.read(input_ids=input_ids, **options))

    def _code_rows(
        self, hidden_BTD: Tensor, input_ids_BT: Tensor, codes_PK: Tensor | None, code_targets_P: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Hidden states (M, D) at the places before learned image positions, and their codes (M, K)."""
        if codes_PK is None or code_targets_P is None:
            codes_MK = torch.zeros(0, self.config.num_codebooks, dtype=torch.int64, device=hidden_BTD.device)
            places_M = codes_MK.new_zeros(0)
        else:
            places_P = (input_ids_BT == self.config.image_token_id).flatten().nonzero()[:, 0]
            places_M, codes_MK = places_P[code_targets_P] - 1, codes_PK[code_targets_P]
        if places_M.shape[0] and not self.config.can_draw:
            raise ValueError(
                f"a model for understanding only cannot learn to draw: found {places_M.shape[0]} learned image "
                "positions; train it on answers in words, or choose another head_type and embedding_context"
            )
        return hidden_BTD.flatten(0, 1).index_select(0, places_M), codes_MK

    def _code_logits(self, hidden_MD: Tensor, codes_MK: Tensor, hidden_BTD: Tensor) -> Tensor:
        """Logits (M, K, C) of learned image positions."""
        if hidden_MD.shape[0] == 0 and self.training:  # ranks without images take part in gradient exchange
            return self.code_head(hidden_BTD[0, :1], codes_MK.new_zeros(1, self.config.num_codebooks))[:0]
        return self.code_head(hidden_MD, codes_MK)


def text_rows(hidden_BTD: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states (L, D) at the places before labelled tokens, and their labels (L,)."""
    next_labels_BT = torch.nn.functional.pad(labels_BT[:, 1:], (0, 1), value=IGNORED).flatten()
    places_L = (next_labels_BT != IGNORED).nonzero()[:, 0]
    return hidden_BTD.flatten(0, 1).index_select(0, places_L), next_labels_BT[places_L]


def packed_mask(segment_ids_BT: Tensor) -> Tensor:
    """Boolean (B, 1, T, T), true where a place may look: earlier places of the same sample, and itself."""
    num_places = segment_ids_BT.shape[1]
    causal_TT = torch.ones(num_places, num_places, dtype=torch.bool, device=segment_ids_BT.device).tril()
    return ((segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]) & causal_TT)[:, None]


for auto_class in (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM):
    auto_class.register(MLLMConfig, MLLMForConditionalGeneration, exist_ok=True)
