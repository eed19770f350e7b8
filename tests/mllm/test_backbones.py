"""Any decoder of transformers: each learns, packs, decodes with a cache, draws, and survives saving and loading."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from mllm.config import MLLMConfig
from mllm.engine.loop import Engine
from mllm.engine.request import GenerationRequest
from mllm.model import MLLMForConditionalGeneration
from mllm.sampling import SamplingConfig
from mllm.sequence import pack
from tests.mllm.engine_helpers import CODEBOOK_SIZE, IDS, NUM_CODEBOOKS, build_prompt, learned_sample

SIZES = {"vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 96, "pad_token_id": 0}
BACKBONES = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "gemma": GemmaConfig(**SIZES, head_dim=8),
    "gemma2": Gemma2Config(**SIZES, head_dim=8, sliding_window=64, query_pre_attn_scalar=8),
    "gemma3": Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=64, query_pre_attn_scalar=8),
}
SAMPLES = [learned_sample(seed=seed, plan=["text", "image", "TEXT", "IMAGE"]) for seed in range(3)]


@pytest.mark.parametrize("text_config", BACKBONES.values(), ids=BACKBONES)
def test_a_backbone_learns_packs_decodes_draws_and_is_saved(text_config: PreTrainedConfig, tmp_path: Path) -> None:
    sizes = {"num_codebooks": NUM_CODEBOOKS, "codebook_size": CODEBOOK_SIZE, "code_width": 4, "image_size": 48}
    heads = {"embedder_width": 24, "embedder_heads": 3, "head_layers": 2}
    torch.manual_seed(0)
    model = MLLMForConditionalGeneration(MLLMConfig(text_config=text_config.to_dict(), **sizes, **heads, **IDS))

    batch, losses = pack(SAMPLES, length=70, pad_token_id=0), []
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2)
    for _ in range(8):
        loss = model(**batch).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]

    model.eval().save_pretrained(tmp_path)
    loaded = MLLMForConditionalGeneration.from_pretrained(tmp_path)
    assert type(loaded.backbone) is type(model.backbone)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    layer = type(next(module for module in model.backbone.modules() if type(module).__name__.endswith("DecoderLayer")))
    assert layer.__name__ in model._no_split_modules

    with torch.no_grad():
        sample = SAMPLES[0]
        ids_1T, codes = torch.from_numpy(sample.token_ids_T)[None], torch.from_numpy(sample.codes_PK)
        alone_TV = model(ids_1T, codes=codes, image_lengths=torch.from_numpy(sample.image_lengths_I)).logits[0]
        inputs = {name: batch[name] for name in ("input_ids", "position_ids", "codes", "image_lengths")}
        packed_TV = model(**inputs, use_cache=False).logits[0, : len(sample)]
        torch.testing.assert_close(packed_TV, alone_TV, atol=1e-4, rtol=1e-4)

        text_1T = torch.randint(7, 38, (1, 12), generator=torch.Generator().manual_seed(1))
        cache = DynamicCache(config=model.config.text_config)
        steps = [model(part, past_key_values=cache, use_cache=True).logits for part in text_1T.split([5, 1, 1, 5], 1)]
        torch.testing.assert_close(torch.cat(steps, dim=1), model(text_1T).logits, atol=1e-4, rtol=1e-4)

        prompt, greedy = build_prompt(4, seed=2), SamplingConfig(greedy=True)
        request = GenerationRequest(prompt=prompt, mode="image", max_new_tokens=20, image=greedy)
        drawn_NK = torch.from_numpy(Engine(loaded).generate([request])[0].images[0].codes_KN.T.astype("int64"))
        ids = [*request.prompt.token_ids_T, IDS["begin_image_id"], *[IDS["image_token_id"]] * 9]
        hidden_TD = model(torch.tensor([ids]), codes=drawn_NK, image_lengths=torch.tensor([9])).hidden[0]
        assert torch.equal(model.code_head(hidden_TD[-10:-1], drawn_NK).argmax(dim=-1), drawn_NK), "as without a cache"


@torch.no_grad()
def test_text_logits_are_those_of_the_language_model_with_the_same_weights() -> None:
    """Also where the language model caps them, as Gemma 2 does."""
    for name, text_config in BACKBONES.items():
        torch.manual_seed(1)
        language_model = AutoModelForCausalLM.from_config(text_config).eval()
        model = MLLMForConditionalGeneration(MLLMConfig(text_config=text_config.to_dict())).eval()
        model.backbone.load_state_dict(language_model.model.state_dict())
        model.lm_head.weight.copy_(language_model.lm_head.weight * 30)
        language_model.lm_head.weight.copy_(model.lm_head.weight)
        ids_1T = torch.arange(7, 20)[None]
        torch.testing.assert_close(model(ids_1T).logits, language_model(ids_1T).logits, msg=name)
