"""What training tools of others do to a model, made right: TRL's fused output layer, and peft on tied layers.

A mixin of the model. TRL computes log-probabilities from the backbone and the output layer alone, which know no images;
peft adds its change to one of two tied layers, which share a weight.

Letters: B batch, T positions, P image positions, M learned ones, D hidden width, K codebooks, C codes.
"""

import logging
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

logger = logging.getLogger(__name__)


class ThirdPartyMixin:
    def __setattr__(self, name: str, value: Any) -> None:
        if name == "forward" and "fused_lm_head" in code_names(value):
            value = with_images(self, value)
        super().__setattr__(name, value)
        if name == "peft_config":  # peft sets it on a model that has its adapters
            from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
            from peft.tuners.tuners_utils import BaseTunerLayer

            layers = (self.get_input_embeddings(), self.get_output_embeddings())
            if any(isinstance(each, BaseTunerLayer) and not isinstance(each, TrainableTokensLayer) for each in layers):
                self.untie()

    @property
    def base_model(self) -> Any:
        """The backbone; for TRL's fused output layer one that reads images."""
        return vars(self).get("_image_reader") or super().base_model

    def untie(self) -> None:
        """Give the output layer a weight of its own, so that a change of one layer is none of the other."""
        if not self.config.tie_word_embeddings:
            return
        layer = self.get_output_embeddings()
        layer = getattr(layer, "base_layer", layer)
        if hasattr(layer.weight, "ds_id"):
            raise ValueError(
                "adapters on tied layers must be added before DeepSpeed partitions the model, got ZeRO-3; leave "
                "embed_tokens and lm_head out of target_modules"
            )
        logger.warning("the output layer is no longer tied to the embedding: one of them has an adapter")
        layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=layer.weight.requires_grad)
        self.follow_tying()

    def follow_tying(self) -> None:
        """Let the config say whether the two layers have one weight; peft replaces layers without telling it all."""
        layers = (self.get_input_embeddings(), self.get_output_embeddings())
        weights = [getattr(layer, "base_layer", layer).weight for layer in layers]
        says_tied = self.config.tie_word_embeddings or self.config.text_config.tie_word_embeddings
        if says_tied and len({weight.data_ptr() for weight in weights if weight.numel()}) > 1:
            self.config.tie_word_embeddings = self.config.text_config.tie_word_embeddings = False
            self.all_tied_weights_keys = {}


def code_names(function: Any) -> Sequence[str]:
    return getattr(getattr(getattr(function, "__func__", None), "__code__", None), "co_varnames", ())


def with_images(model: Any, fused: Callable[..., Any]) -> Callable[..., Any]:
    """TRL's `forward(fused_lm_head=True)`, which gives log-probabilities of the next tokens, with images. Before a
    learned image position stands the log-probability of its K codes; before another one 0, and its label does not
    count."""
    original = model.forward

    def forward(*args: Any, fused_lm_head: bool = False, labels: Tensor | None = None, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return fused(*args, **({} if labels is None else {"labels": labels}), **kwargs)
        hidden: list[Tensor] = []

        def read(*args: Any, **kwargs: Any) -> SimpleNamespace:
            hidden.append(original(*args, logits_to_keep=1, **kwargs).hidden)
            return SimpleNamespace(last_hidden_state=hidden[0])

        vars(model)["_image_reader"] = read
        try:
            output = fused(*args, fused_lm_head=True, labels=labels, **kwargs)
        finally:
            del vars(model)["_image_reader"]
        if kwargs.get("codes") is None:
            return output
        return add_codes(model, output, hidden[0], labels, **kwargs)

    forward.__wrapped__ = type(model).forward  # type: ignore[attr-defined]  # `generate` reads the signature
    return forward


def add_codes(
    model: Any,
    output: Any,
    hidden_BTD: Tensor,
    labels_BT: Tensor,
    *,
    input_ids: Tensor,
    codes: Tensor,
    code_targets: Tensor | None = None,
    num_items_in_batch: Any = None,
    **kwargs: Any,
) -> Any:
    """TRL's output with the log-probabilities of images (changed in place)."""
    is_image_BT = input_ids == model.config.image_token_id
    is_learned_BT = torch.zeros_like(is_image_BT)
    if code_targets is not None:
        is_learned_BT[is_image_BT] = code_targets.to(is_image_BT.device)
        is_learned_BT &= labels_BT != -100
    codes_MK = codes[is_learned_BT[is_image_BT]]
    before_BT = F.pad(is_learned_BT[:, 1:], (0, 1))
    per_token = {name: output[name] for name in ("log_probs", "entropy", "label_mask", "is_top1") if name in output}
    for name, values in per_token.items():
        values = values.masked_fill(is_image_BT[:, 1:], 0)
        if name == "log_probs" and len(codes_MK):
            logits_MKC = model.code_head(hidden_BTD[before_BT], codes_MK).float()
            log_probs_MK = -F.cross_entropy(logits_MKC.transpose(1, 2), codes_MK, reduction="none")
            values = values.masked_scatter(before_BT[:, :-1], log_probs_MK.sum(dim=1).to(values.dtype))
        output[name] = values | before_BT[:, :-1] if name == "label_mask" else values
    num_items = output.label_mask.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    output["loss"] = -output.log_probs.sum() / num_items
    return output
