"""The unified model: one decoder over a sequence of text tokens and image positions, with a head for each.

In: token ids with placeholders at image positions, and the K codes of every image position in reading order. Out: text
logits, or with labels the loss. It does not know strings, images or sampling.

The hidden state at t predicts what is at t + 1, be it a text token (lm_head) or the K codes of an image position
(code_head). Labels and codes are given at their own position; the shift happens here.

The loss, with w the weight of a text token and z that of the z-loss, is

    total = ( w * sum of text CE + sum of code CE + z * sum of (max logit)^2 ) / ( w * L + M * K )

so every text token and every code counts alike (for w = 1), as upstream has it within a batch; upstream's z-term is the
square of the largest logit, not of the logsumexp. To count alike over accumulation steps and ranks, divide by the
number of items of ALL of them: `num_items_in_batch` = sum of `count_items` of every micro-batch on every rank.
Frameworks average gradients over ranks, so the trainer multiplies the loss by the world size (transformers does so when
`average_tokens_across_devices` is set) and sums over accumulation steps undivided.

Letters: B batch, T sequence, D hidden width, V text vocabulary, P image positions in the batch, I images, K codebooks,
C codes per codebook, L labelled text tokens, M learned image positions, R rows of a slice.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple, is_flash_attention_requested
from transformers.utils.hub import hf_api

from mllm.checkpoint import (
    CARD_FILE,
    is_released_folder,
    keep_precise,
    model_card,
    open_released,
    own_memory,
    save_model_card,
)
from mllm.config import MLLMConfig
from mllm.embedding import (
    POSITION_STD,
    PositionEmbedding,
    ProjectedEmbedding,
    SourceEmbedding,
    SummedEmbedding,
    check_values,
    image_of_positions,
    source_codes,
)
from mllm.heads import DepthTransformerHead, MLPHead, PerCodebookLinear
from mllm.processor import MLLMProcessor
from mllm.sequence import IGNORED
from mllm.third_party import ThirdPartyMixin
from tokenizer.layers import ProjectionAttention

LOGIT_BYTES = 4
"""The loss is computed in float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossParts:
    """The loss and what it is made of. All but `total` are for the log: detached, means over this batch alone."""

    total: Tensor  # what is differentiated
    text: Tensor  # cross-entropy per labelled text token; 0 without any
    image: Tensor  # cross-entropy per code; 0 without any
    z: Tensor  # weighted z-term per code
    image_per_codebook_K: Tensor
    num_text: int  # L
    num_image: int  # M * K


@dataclass
class MLLMOutput(ModelOutput):
    loss: Tensor | None = None
    logits: Tensor | None = None  # (B, T, V); None where the loss is computed in slices
    past_key_values: Cache | None = None
    hidden: Tensor | None = None  # (B, T, D), after the last norm
    hidden_states: tuple[Tensor, ...] | None = None  # the next two: of the backbone, where asked for
    attentions: tuple[Tensor, ...] | None = None
    loss_parts: LossParts | None = None


class MLLMForConditionalGeneration(ThirdPartyMixin, PreTrainedModel, GenerationMixin):
    """A decoder backbone, the embedding of image codes, and the codebook head (None for understanding only)."""

    config: MLLMConfig
    config_class = MLLMConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    input_modalities = ("text", "image")
    output_modalities = ("text", "image")
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _tp_plan = {"lm_head": "colwise_gather_output"}
    # those of the backbone are added when the model is built
    _no_split_modules = ["DepthTransformerHead", "MLPHead", "ProjectedEmbedding", "SummedEmbedding"]
    _skip_keys_device_placement = ["past_key_values"]

    def __init__(self, config: MLLMConfig) -> None:
        super().__init__(config)
        self.backbone = AutoModel.from_config(config.text_config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        is_projected = config.code_embedder == "projected"
        self.code_embedding = ProjectedEmbedding(config) if is_projected else SummedEmbedding(config)
        heads = {"depth_transformer": DepthTransformerHead, "mlp": MLPHead}
        self.code_head: Any = None if config.head_type == "none" else heads[config.head_type](config)
        embedding = self.backbone.get_input_embeddings()
        name = next(name for name, module in self.backbone.named_modules() if module is embedding)
        self._tied_weights_keys = {"lm_head.weight": f"backbone.{name}.weight"}
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise what the backbone does not initialise itself.

        | what                                     | values                                                     |
        |------------------------------------------|------------------------------------------------------------|
        | linear layers, embeddings                | normal, std initializer_range of the backbone; bias 0      |
        | linear layers of the projected embedding | normal, std 1 / sqrt(inputs): its inputs have norm sqrt(K) |
        | position embedding                       | normal, std POSITION_STD: its content has size 1           |
        | source embedding                         | 0                                                          |
        | norms                                    | weight 1, bias 0                                           |
        | q_bias, v_bias, zero_k_bias              | 0                                                          |
        | codebooks                                | scattered (replaced by the image tokenizer's)              |
        | rope tables                              | cos, sin                                                   |
        """
        match module:
            case ProjectedEmbedding():
                init.copy_(module.codebooks, module.scattered_codebooks())
                init.zeros_(module.codebook_usage)
                for linear in module.modules():
                    if isinstance(linear, nn.Linear):
                        init.normal_(linear.weight, std=linear.in_features**-0.5)
            case SourceEmbedding():
                init.zeros_(module.codebooks)
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
    ) -> Self:
        """As in transformers; a folder in the released layout (`mini_gemini`) is read as it is, strictly. A
        `quantization_config` that does not say which modules keep their precision keeps those of `KEPT`."""
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = keep_precise(kwargs["quantization_config"])
        if not is_released_folder(pretrained_model_name_or_path):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        folder = Path(pretrained_model_name_or_path)
        config = kwargs.pop("config", None)
        fields = {name: kwargs.pop(name) for name in list(kwargs) if name in MLLMConfig.__annotations__}
        if not isinstance(config, MLLMConfig):
            config = MLLMConfig.from_pretrained(folder, **fields)
        files, sources = open_released(folder, cls, config)
        tensors = {name: source.read(files) for name, source in sources.items()}
        loaded = super().from_pretrained(None, *args, config=config, state_dict=tensors, **kwargs)
        own_memory(loaded[0] if isinstance(loaded, tuple) else loaded, tensors)
        return loaded

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As in transformers, with a model card; unknown fields of the generation config survive loading."""
        self.generation_config._from_model_config = False
        self.follow_tying()
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            save_model_card(save_directory, self.config)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Nothing: `auto_map` of the config names our file, so none of our modules is copied into saved folders."""

    def push_to_hub(self, repo_id: str, *, create_pr: bool = False, **kwargs: Any) -> Any:
        """As in transformers, which puts a card of its own into a new repository; ours replaces it."""
        url = super().push_to_hub(repo_id, create_pr=create_pr, **kwargs)
        if not create_pr:
            hf_api().upload_file(
                path_or_fileobj=str(model_card(self.config)).encode(),
                path_in_repo=CARD_FILE,
                repo_id=repo_id,
                revision=kwargs.get("revision"),
                token=kwargs.get("token"),
            )
        return url

    @property
    def device(self) -> torch.device:
        """Where inputs go. Between calls accelerate may keep weights elsewhere."""
        execution = getattr(getattr(self.get_input_embeddings(), "_hf_hook", None), "execution_device", None)
        return super().device if execution is None else torch.device(execution)

    @property
    def is_sharded(self) -> bool:
        """Whether processes hold parts of the weights, so that each must call every module as often as the others."""
        return is_deepspeed_zero3_enabled() or getattr(self, "_is_fsdp_managed_module", False)

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def embed(
        self,
        input_ids_BT: Tensor,
        codes_PK: Tensor | None,
        image_lengths_I: Tensor | None,
        sources_PK: Tensor | None = None,
    ) -> Tensor:
        """Embed text tokens and, at the placeholders, image positions in reading order; (B, T, D). `sources_PK`: of a
        source embedding; default: as these ids and codes say."""
        is_image_BT = input_ids_BT == self.config.image_token_id
        hidden_BTD = self.get_input_embeddings()(input_ids_BT.masked_fill(is_image_BT, self.config.pad_token_id))
        num_codes = 0 if codes_PK is None else codes_PK.shape[0]
        num_images = is_image_BT.sum()
        check_values(
            num_images == num_codes,
            lambda: (
                f"codes must have one row per image placeholder, got {num_codes} for {int(num_images)}; "
                "pass the codes of every image position in the batch, in reading order"
            ),
        )
        if num_codes == 0:
            if codes_PK is None and not self.training and not self.is_sharded:
                return hidden_BTD
            # zero that depends on the code embedding, so that ranks without images take part in gradient exchange
            codes_1K = torch.zeros(1, self.config.num_codebooks, dtype=torch.int64, device=input_ids_BT.device)
            return hidden_BTD + self.code_embedding(codes_1K, torch.ones(1, dtype=torch.int64)).sum() * 0.0
        if image_lengths_I is None:
            raise ValueError("image_lengths must come with codes, got none; pass one length per image")
        indices_P = image_indices(is_image_BT, num_codes)
        columns_I = None
        if self.config.image_position_embedding and self.config.image_layout == "grid":
            lengths_I = image_lengths_I.to(indices_P.device)
            first_I = indices_P[lengths_I.cumsum(0) - lengths_I]  # the token before tells the number of columns
            columns_I = input_ids_BT.flatten()[first_I - 1] - self.config.first_column_size_id + 1
        if sources_PK is None and self.config.image_source_embedding:
            sources_PK = self._sources(input_ids_BT, codes_PK, image_lengths_I)
        embedded_PD = self.code_embedding(codes_PK, image_lengths_I, columns_I=columns_I, sources_PK=sources_PK)
        return hidden_BTD.flatten(0, 1).index_copy(0, indices_P, embedded_PD.to(hidden_BTD.dtype)).view_as(hidden_BTD)

    def _sources(self, input_ids_BT: Tensor, codes_PK: Tensor, image_lengths_I: Tensor) -> Tensor:
        """For the source embedding: the codes that the next position has in the image before (P, K)."""
        indices_P = image_indices(input_ids_BT == self.config.image_token_id, len(codes_PK))
        lengths_I = image_lengths_I.to(indices_P.device)
        begins_BT = input_ids_BT == self.config.bos_token_id  # a sample, of which a row may hold several
        begins_BT[:, 0] = True
        sample_I = begins_BT.flatten().cumsum(0)[indices_P[lengths_I.cumsum(0) - lengths_I]]
        return source_codes(codes_PK, lengths_I, sample_I)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        codes: Tensor | None = None,
        image_lengths: Tensor | None = None,
        code_targets: Tensor | None = None,
        sources: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items: Tensor | float | None = None,
        num_items_in_batch: Tensor | float | None = None,
        max_logits_bytes: int | None = None,
        scheduled_sampling: float = 0.0,
        **kwargs: Any,
    ) -> MLLMOutput:
        """One pass: text logits, and with labels the loss.

        Args:
            attention_mask: (B, T) of real tokens, or a mask of four dimensions, used as given.
            position_ids: (B, T). Without a mask and a cache, each restart begins a packed sample; none sees another.
            labels: (B, T). At image placeholders: `image_token_id` where their codes are learned, else -100.
            codes: (P, K) of all image positions of the batch, in reading order.
            code_targets: (P,) which of them are learned; default: as the labels say.
            sources: (P, K) for the source embedding; default: as ids and codes say, without what a cache holds.
            logits_to_keep: which positions have logits, as in transformers; 0 means all.
            num_items: divisor of the loss, `count_items` over accumulation steps and ranks.
            num_items_in_batch: that of a plain Trainer, which counts labels: this batch weighs as many as it has.
            max_logits_bytes: compute the loss in slices whose logits take no more, and return no logits.
            scheduled_sampling: share of learned image positions that the model sees as it predicts them, not as they
                are, so that it learns to go on from what it draws (arXiv:1506.03099, in two parallel passes as in
                arXiv:1906.04331). For whole sequences with labels.
        """
        may_be_packed = position_ids is not None and attention_mask is None and past_key_values is None
        if labels is not None or may_be_packed or torch.compiler.is_exporting():
            use_cache = bool(use_cache)
        run = partial(
            self._run_backbone,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        if inputs_embeds is None:
            seen_PK = codes
            if scheduled_sampling and labels is not None and self.code_head is not None:
                with torch.no_grad():  # also without images: processes that share weights make as many passes
                    hidden_BTD = run(self.embed(input_ids, codes, image_lengths)).last_hidden_state
                    seen_PK = self._replace_codes(
                        hidden_BTD, input_ids, codes, code_targets, labels, scheduled_sampling
                    )
            inputs_embeds = self.embed(input_ids, seen_PK, image_lengths, sources)
        outputs = run(inputs_embeds)
        hidden_BTD, logits_BTV, parts = outputs.last_hidden_state, None, None
        if labels is None or max_logits_bytes is None:
            logits_BTV = self.text_logits(slice_logits_to_keep(hidden_BTD, logits_to_keep))
        if labels is not None:
            has_all = logits_BTV is not None and logits_BTV.shape[1] == labels.shape[1]
            parts = compute_loss(
                (lambda logits: logits) if has_all else self.text_logits,
                self.code_head,
                select_text(logits_BTV if has_all else hidden_BTD, labels, self.config.image_token_id),
                self._select_codes(hidden_BTD, input_ids, codes, code_targets, labels),
                config=self.config,
                num_items=num_items,
                num_rows=labels.numel(),
                max_bytes=max_logits_bytes,
            )
            if num_items_in_batch is not None:
                share = (labels[:, 1:] != IGNORED).sum() / num_items_in_batch
                parts = replace(parts, total=parts.total * share)
        return MLLMOutput(
            loss=None if parts is None else parts.total,
            logits=logits_BTV,
            past_key_values=outputs.past_key_values,
            hidden=hidden_BTD,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            loss_parts=parts,
        )

    def _run_backbone(self, inputs_BTD: Tensor, *, position_ids: Tensor | None, **kwargs: Any) -> ModelOutput:
        shape = inputs_BTD.shape
        is_packed = position_ids is not None and kwargs["attention_mask"] is None and kwargs["past_key_values"] is None
        if is_packed and is_flash_attention_requested(self.backbone.config):
            # flash attention in transformers finds packed samples in a batch of one row only
            inputs_BTD, position_ids = inputs_BTD.flatten(0, 1)[None], position_ids.expand(shape[:2]).flatten()[None]
        outputs = self.backbone(inputs_embeds=inputs_BTD, position_ids=position_ids, **kwargs)
        outputs.last_hidden_state = outputs.last_hidden_state.view(shape)
        return outputs

    def text_logits(self, hidden: Tensor) -> Tensor:
        """Logits of the next text token; (..., V)."""
        logits = self.lm_head(hidden)
        cap = getattr(self.config.text_config, "final_logit_softcapping", None)  # Gemma 2
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: Any = None,
        *,
        generation_mode: str = "text",
        **options: Any,
    ) -> Any:
        """Answer prompts in text, an image, or both (`generation_mode`); takes what the processor returns. Text comes
        from transformers' own loop, with its options and results; images are codes (S, N * K), or with
        `return_dict_in_generate=True` and for mixed answers a `GenerateOutput` (mllm/generate.py)."""
        from mllm.generate import generate_images, generate_text

        if isinstance(generation_config, dict):
            generation_config = GenerationConfig(**generation_config)
        options["generation_config"] = generation_config
        is_assistant = bool(getattr(generation_config, "is_assistant", False))  # of transformers' assisted decoding
        input_ids = inputs if inputs is not None else options.get("input_ids")
        if is_assistant or (input_ids is None and options.get("inputs_embeds") is not None):
            return super().generate(inputs, **options)
        if input_ids is None:
            raise ValueError("generate must have a prompt, got no input_ids; pass what the processor returns")
        options.pop("input_ids", None)
        if generation_mode == "text":
            return generate_text(self, input_ids, options)
        return generate_images(self, input_ids, generation_mode, options)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        codes: Tensor | None = None,
        image_lengths: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Inputs of one pass of transformers' loop: with the codes of those placeholders that it has not seen yet.
        Candidates of prompt lookup may repeat placeholders; they are padding, and no candidate is accepted there."""
        inputs = super().prepare_inputs_for_generation(
            input_ids, next_sequence_length, inputs_embeds=inputs_embeds, **kwargs
        )
        if inputs.get("input_ids") is None:
            return inputs
        num_codes, num_new = (0 if codes is None else codes.shape[0]), inputs["input_ids"].shape[1]
        is_image_BT = input_ids == self.config.image_token_id
        number_BT = is_image_BT.flatten().cumsum(0).view_as(input_ids)
        is_known_BT = is_image_BT & (number_BT <= num_codes)
        unknown_BT = (is_image_BT & ~is_known_BT)[:, -num_new:].to(inputs["input_ids"].device)
        inputs["input_ids"] = inputs["input_ids"].masked_fill(unknown_BT, self.config.pad_token_id)
        if num_codes:
            chosen_P = (number_BT[:, -num_new:][is_known_BT[:, -num_new:]] - 1).to(codes.device)
            image_P = image_of_positions(image_lengths.to(codes.device), num_codes)[chosen_P]
            if len(chosen_P):
                inputs["codes"] = codes[chosen_P]
                if self.config.image_source_embedding:  # of images that a cache holds, too
                    inputs["sources"] = self._sources(input_ids, codes, image_lengths)[chosen_P]
                inputs["image_lengths"] = image_P.unique_consecutive(return_counts=True)[1]
        return inputs

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        """Prompts several times each, with their images."""
        codes, lengths, images = kwargs.pop("codes", None), kwargs.pop("image_lengths", None), {}
        if codes is not None:
            num_codes = (input_ids == self.config.image_token_id).sum(dim=1).tolist()
            rows_P = torch.arange(len(num_codes)).repeat_interleave(torch.tensor(num_codes))
            num_images = rows_P[lengths.cpu().cumsum(0) - 1].bincount(minlength=len(num_codes)).tolist()
            for name, rows in (("codes", codes.split(num_codes)), ("image_lengths", lengths.split(num_images))):
                images[name] = torch.cat([row for row in rows for _ in range(expand_size)])
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **kwargs)
        return input_ids, {**kwargs, **images}

    def _get_logits_processor(self, generation_config: GenerationConfig, **kwargs: Any) -> LogitsProcessorList:
        """The library's, and that a text has no tokens of images."""
        from mllm.generate import TextProcessors

        found = super()._get_logits_processor(generation_config, **kwargs)
        return TextProcessors(found, generation_config, self.config)

    def _replace_codes(
        self,
        hidden_BTD: Tensor,
        input_ids_BT: Tensor,
        codes_PK: Tensor | None,
        is_learned_P: Tensor | None,
        labels_BT: Tensor,
        share: float,
    ) -> Tensor | None:
        """The codes (P, K) with a share of those at learned positions replaced by the most probable ones."""
        hidden_MD, codes_MK = self._select_codes(hidden_BTD, input_ids_BT, codes_PK, is_learned_P, labels_BT)
        (chosen_L,) = (torch.rand(len(codes_MK), device=codes_MK.device) < share).nonzero(as_tuple=True)
        predicted_LK = self.code_head(hidden_MD[chosen_L], codes_MK[chosen_L]).argmax(dim=-1)
        if codes_PK is None or not len(codes_MK):
            return codes_PK
        if is_learned_P is None:
            indices_P = image_indices(input_ids_BT == self.config.image_token_id, len(codes_PK))
            is_learned_P = labels_BT.flatten()[indices_P] == self.config.image_token_id
        return codes_PK.masked_scatter(is_learned_P[:, None], codes_MK.index_copy(0, chosen_L, predicted_LK))

    def _select_codes(
        self,
        hidden_BTD: Tensor,
        input_ids_BT: Tensor,
        codes_PK: Tensor | None,
        is_learned_P: Tensor | None,
        labels_BT: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Hidden states (M, D) before learned image positions, and their codes (M, K)."""
        if codes_PK is None or (is_learned_P is None and not self.config.can_draw):
            codes_MK = torch.zeros(0, self.config.num_codebooks, dtype=torch.int64, device=hidden_BTD.device)
            return hidden_BTD.flatten(0, 1)[:0], codes_MK
        indices_P = image_indices(input_ids_BT == self.config.image_token_id, codes_PK.shape[0])
        if is_learned_P is None:
            is_learned_P = labels_BT.flatten()[indices_P] == self.config.image_token_id
        targets_PK = codes_PK.masked_fill(~is_learned_P[:, None], IGNORED)
        hidden_MD, codes_MK = keep_learned(hidden_BTD.flatten(0, 1)[indices_P - 1], targets_PK)
        if hidden_MD.shape[0] and not self.config.can_draw:
            raise ValueError(
                f"learned image positions must be none in a model for understanding only, got {hidden_MD.shape[0]}; "
                "train it on answers in text, or choose another head_type and embedding_context"
            )
        return hidden_MD, codes_MK


def image_indices(is_image_BT: Tensor, num_positions: int) -> Tensor:
    """Where the placeholders are in the flattened batch (P,); given their number, shapes depend on no values."""
    counts = is_image_BT.flatten().cumsum(0)
    return torch.searchsorted(counts, torch.arange(1, num_positions + 1, device=counts.device))


def keep_learned(values_RX: Tensor, targets_R: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that have a target; compiled all of them, as their number is not known then."""
    if torch.compiler.is_compiling():
        return values_RX, targets_R
    is_learned_R = (targets_R != IGNORED).flatten(1).any(dim=1) if targets_R.ndim > 1 else targets_R != IGNORED
    indices_L = is_learned_R.nonzero()[:, 0]
    return values_RX.index_select(0, indices_L), targets_R[indices_L]


def select_text(values_BTX: Tensor, labels_BT: Tensor, image_token_id: int) -> tuple[Tensor, Tensor]:
    """Hidden states, or logits, (L, X) before labelled tokens, and their labels (L,)."""
    next_labels_BT = F.pad(labels_BT[:, 1:], (0, 1), value=IGNORED).to(values_BTX.device)
    next_labels_BT = next_labels_BT.masked_fill(next_labels_BT == image_token_id, IGNORED)
    return keep_learned(values_BTX.flatten(0, 1), next_labels_BT.flatten())


def count_items(labels_BT: Tensor, code_targets_P: Tensor, *, num_codebooks: int, text_weight: float = 1.0) -> Tensor:
    """What a batch weighs in the loss (float, 0-d): the divisor of `total`. Labels at t = 0 predict nothing."""
    num_text = (labels_BT[:, 1:] != IGNORED).sum()
    return num_text * text_weight + code_targets_P.sum() * num_codebooks


def compute_loss(
    text_head: Callable[[Tensor], Tensor],
    code_head: nn.Module | None,
    text: tuple[Tensor, Tensor],
    image: tuple[Tensor, Tensor],
    *,
    config: MLLMConfig,
    num_items: Tensor | float | None = None,
    num_rows: int = 0,
    max_bytes: int | None = None,
) -> LossParts:
    """The loss of both heads.

    Args:
        text: hidden states (L, D), and the labels (L,) that they predict. L may be 0.
        image: hidden states (M, D), and the codes (M, K) that they predict. M may be 0.
        num_items: what to divide by; None: the items of this batch.
        num_rows: positions of the batch: as many rows as there could be.
        max_bytes: of the logits of a slice; None: all rows are one slice.
    """

    def text_sums(hidden_RD: Tensor, labels_R: Tensor) -> tuple[Tensor]:
        return (F.cross_entropy(text_head(hidden_RD).float(), labels_R, ignore_index=IGNORED, reduction="sum"),)

    def image_sums(hidden_RD: Tensor, codes_RK: Tensor) -> tuple[Tensor, Tensor]:
        logits_RKC = code_head(hidden_RD, codes_RK.clamp(min=0)).float()
        flat = logits_RKC.flatten(0, 1), codes_RK.flatten()
        loss_RK = F.cross_entropy(*flat, ignore_index=IGNORED, reduction="none").view(codes_RK.shape)
        largest_RK = logits_RKC.max(dim=-1).values.masked_fill(codes_RK == IGNORED, 0)  # max: no ties backward, as amax
        return loss_RK.sum(dim=0), largest_RK.square().sum()

    def num_slices(logits_per_row: int) -> int:
        # of the shape of the batch alone, so that every process calls a head equally often (ZeRO-3 needs that)
        return 1 if max_bytes is None else -(-num_rows // max(max_bytes // (LOGIT_BYTES * logits_per_row), 1))

    (text_sum,) = add_up(text_sums, *text, num_slices=num_slices(config.vocab_size))
    if code_head is None:
        image_sum_K, square_sum = text_sum.new_zeros(config.num_codebooks), text_sum.new_zeros(())
    else:
        per_row = config.num_codebooks * config.codebook_size
        image_sum_K, square_sum = add_up(image_sums, *image, num_slices=num_slices(per_row))
    num_text, num_positions = len(text[1]), len(image[1])
    if torch.compiler.is_compiling():  # rows without a target are among them
        num_text, num_positions = (text[1] != IGNORED).sum(), (image[1][:, 0] != IGNORED).sum()
    num_image, z_sum = num_positions * config.num_codebooks, square_sum * config.z_loss_weight
    if num_items is None:
        num_items = max(config.text_loss_weight * num_text + num_image, 1)
    return LossParts(
        total=(text_sum * config.text_loss_weight + image_sum_K.sum() + z_sum) / num_items,
        text=text_sum.detach() / max(num_text, 1),
        image=image_sum_K.detach().sum() / max(num_image, 1),
        z=z_sum.detach() / max(num_image, 1),
        image_per_codebook_K=image_sum_K.detach() / max(num_positions, 1),
        num_text=num_text,
        num_image=num_image,
    )


def add_up(
    sums_of: Callable[[Tensor, Tensor], tuple[Tensor, ...]], hidden_RD: Tensor, targets_R: Tensor, *, num_slices: int
) -> tuple[Tensor, ...]:
    """`sums_of` all rows, added up slice by slice; of several slices (some may be empty) the backward pass computes
    each once more, so that no more than one has logits at a time."""
    if num_slices == 1:
        return sums_of(hidden_RD, targets_R)
    slices = zip(hidden_RD.tensor_split(num_slices), targets_R.tensor_split(num_slices), strict=True)
    sums = [checkpoint(sums_of, hidden, targets, use_reentrant=False) for hidden, targets in slices]
    return tuple(torch.stack(values).sum(dim=0) for values in zip(*sums, strict=True))


AutoProcessor.register(MLLMConfig, MLLMProcessor, exist_ok=True)
for auto_class in (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM):
    auto_class.register(MLLMConfig, MLLMForConditionalGeneration, exist_ok=True)
