"""What a tokenizer's training begins with: the network, its optimizer, and what turns captions into ids."""

from __future__ import annotations

from typing import Any

import torch

from tokenizer.captions import EncodeCaptions, load_captions
from tokenizer.config import UniTokConfig
from tokenizer.model import UniTok
from train.image_tokenizer.recipe import TokenizerRecipe


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
