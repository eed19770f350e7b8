"""The upstream system, step by step and without any of our shortcuts: what benchmarks compare with, and tests equal.

In: our model or image tokenizer, whose weights are shared, and prompts, pixels or codes. Out: codes and pixels. The
language model and the depth head are transformers' own Llama; the rest is written out as the upstream scripts do it:
a dynamic cache for the backbone, both prompts of a guided image in one left-padded batch, a head that runs over its
growing prefix and computes the logits of all of it, guidance on logits, sorting for top-p, codebooks normalised at
every call, images decoded one by one with a doubled image in front of each upsampling convolution.
Nothing here is fast or slow on purpose, and nothing of the toolkit's own decoding is used.

Letters: N images, R rows (N, then N unconditional ones if guided), T prompt positions, P image positions, K codebooks,
C codes, E width of an entry, Z = K * E, D width of the language model, S positions of the depth sequence so far.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from mllm.checkpoint import RELEASED
from mllm.config import MLLMConfig
from mllm.model import MLLMForConditionalGeneration
from mllm.sampling import SamplingConfig, gumbel
from tokenizer.layers import Upsample
from tokenizer.quantizer import MultiCodebookQuantizer
from tokenizer.unitok import UniTok

LEAST_TEMPERATURE = 1e-5  # upstream divides by at least this

Choose = Callable[[Tensor, SamplingConfig, Tensor | None], Tensor]
"""(logits_NC, settings, noise_NC) to codes_N."""


class UpstreamDrawing:
    """Text to image codes as the upstream scripts do it.

    Args:
        model: of the released architecture, in any size: a Llama, projected codes, a depth transformer.
        cached_head: keep keys and values of the depth head in transformers' DynamicCache; upstream does not.
    """

    def __init__(self, model: MLLMForConditionalGeneration, *, cached_head: bool = False) -> None:
        config = model.config
        self.config, self.cached_head = config, cached_head
        state = RELEASED.to_theirs(model.state_dict(), codebook_size=config.codebook_size)
        self.llm = load_llama(config.text_config, part_of(state, "model.", but_not="multi_embedder."))
        self.head = load_llama(head_config(config), part_of(state, "ar_head.", but_not=("codebooks.", "linear_head.")))
        self.head_codebooks = [state[f"ar_head.codebooks.{k}.weight"] for k in range(config.num_codebooks - 1)]
        self.linear_weight, self.linear_bias = state["ar_head.linear_head.weight"], state["ar_head.linear_head.bias"]
        self.embedder = part_of(state, "model.multi_embedder.")

    @torch.inference_mode()
    def draw(
        self,
        prompts: list[list[int]],
        unconditional: list[list[int]],
        *,
        num_positions: int,
        settings: SamplingConfig,
        seeds: list[int] | None = None,
        sees_prefix: bool = False,
        choose: Choose | None = None,
    ) -> Tensor:
        """Codes (N, K, P) of one image for every prompt. Prompts end with begin-of-image.

        Args:
            unconditional: one for every prompt; used with guidance above 1.
            seeds: of the images, whose Gumbel noise chooses in place of upstream's `torch.multinomial`.
            sees_prefix: embed each new position with those before it, as in training; the upstream scripts embed it
                alone.
            choose: picks each code in place of `choose_code`; asked position by position, codebook by codebook.
        """
        num_images = len(prompts)
        rows = [*prompts, *unconditional] if settings.guidance > 1 else prompts
        ids_RT, mask_RT = pad_left(rows, self.config.pad_token_id, device=self.linear_weight.device)
        cache = DynamicCache()
        embeddings_RTD = self.llm.embed_tokens(ids_RT)
        positions_RT = (mask_RT.cumsum(-1) - 1).masked_fill(mask_RT == 0, 1)
        codes: list[Tensor] = []
        for p in range(num_positions):
            hidden_RTD = self.llm(
                inputs_embeds=embeddings_RTD,
                attention_mask=mask_RT,
                position_ids=positions_RT,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            noise_NKC = None if seeds is None else self.noise(seeds, p)
            codes.append(self.choose_codes(hidden_RTD[:, -1:], num_images, settings, noise_NKC, choose or choose_code))
            codes_NPK = torch.stack(codes if sees_prefix else codes[-1:], dim=1)
            codes_RPK = torch.cat([codes_NPK] * (len(rows) // num_images))
            embeddings_RTD = self.embed_codes(codes_RPK)[:, -1:]
            mask_RT = torch.cat([mask_RT, mask_RT.new_ones(len(rows), 1)], dim=1)
            positions_RT = positions_RT[:, -1:] + 1
        return torch.stack(codes, dim=2)

    def noise(self, seeds: list[int], position: int) -> Tensor:
        """Gumbel noise (N, K, C) of the codes of one position."""
        seeds_N1 = torch.tensor(seeds, device=self.linear_bias.device)[:, None]
        codebooks_K = torch.arange(self.config.num_codebooks, device=self.linear_bias.device)
        position_N1 = torch.full_like(seeds_N1, position)
        return gumbel(seeds_N1, position_N1, codebooks_K, num_choices=self.config.codebook_size)

    def choose_codes(
        self,
        hidden_R1D: Tensor,
        num_images: int,
        settings: SamplingConfig,
        noise_NKC: Tensor | None,
        choose: Choose,
    ) -> Tensor:
        """The codes (N, K) of one image position, one after another."""
        inputs_RSD, codes, cache = hidden_R1D, [], DynamicCache()
        for k in range(self.config.num_codebooks):
            cached = {"past_key_values": cache, "use_cache": True} if self.cached_head else {"use_cache": False}
            fed_RSD = inputs_RSD[:, -1:] if self.cached_head else inputs_RSD
            output_RSD = self.head(inputs_embeds=fed_RSD, **cached).last_hidden_state
            logits_RC = F.linear(output_RSD, self.linear_weight, self.linear_bias)[:, -1]
            if settings.guidance > 1:
                conditional_NC, unconditional_NC = logits_RC[:num_images], logits_RC[num_images:]
                logits_RC = unconditional_NC + (conditional_NC - unconditional_NC) * settings.guidance
            codes.append(choose(logits_RC, settings, None if noise_NKC is None else noise_NKC[:, k]))
            if k < self.config.num_codebooks - 1:
                codes_R = torch.cat([codes[-1]] * (len(inputs_RSD) // num_images))
                embedded_R1D = F.embedding(codes_R, self.head_codebooks[k])[:, None]
                inputs_RSD = torch.cat([inputs_RSD, embedded_R1D], dim=1)
        return torch.stack(codes, dim=1)

    def embed_codes(self, codes_RPK: Tensor) -> Tensor:
        """Vectors (R, P, D) of image positions that follow each other; upstream's `multi_embedder`."""
        entries = []
        for k in range(self.config.num_codebooks):
            codebook_CE = F.normalize(self.embedder[f"quantizer.codebooks.{k}.codebook.weight"], dim=-1)
            entries.append(F.embedding(codes_RPK[..., k], codebook_CE))
        hidden = self.norm("mm_projector.0", self.project(torch.cat(entries, dim=-1)), eps=1e-6)
        return self.linear("mm_projector.3", F.gelu(self.linear("mm_projector.1", hidden)))

    def project(self, vectors_RPZ: Tensor) -> Tensor:
        """The causal attention projection, then its gated MLP."""
        name, weights = "attn_projection", self.embedder
        bias = torch.cat([weights[f"{name}.attn.{part}"] for part in ("q_bias", "zero_k_bias", "v_bias")])
        qkv = F.linear(self.norm(f"{name}.norm1", vectors_RPZ), weights[f"{name}.attn.qkv.weight"], bias)
        query, key, value = (
            part.unflatten(-1, (self.config.embedder_heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1)
        )
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(2)
        hidden = self.linear(f"{name}.proj", self.norm(f"{name}.norm3", vectors_RPZ))
        hidden = hidden + self.linear(f"{name}.attn.proj", attended)
        inner = self.norm(f"{name}.mlp.norm", self.norm(f"{name}.norm2", hidden), eps=1e-6)
        gate = F.gelu(self.linear(f"{name}.mlp.w0", inner), approximate="tanh")
        return hidden + self.linear(f"{name}.mlp.w2", gate * self.linear(f"{name}.mlp.w1", inner))

    def norm(self, name: str, hidden: Tensor, *, eps: float = 1e-5) -> Tensor:
        return F.layer_norm(
            hidden, hidden.shape[-1:], self.embedder[f"{name}.weight"], self.embedder[f"{name}.bias"], eps
        )

    def linear(self, name: str, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embedder[f"{name}.weight"], self.embedder[f"{name}.bias"])


def part_of(state: dict[str, Tensor], prefix: str, *, but_not: str | tuple[str, ...] = ()) -> dict[str, Tensor]:
    inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return {key: value for key, value in inside.items() if not key.startswith(but_not)}


def head_config(config: MLLMConfig) -> LlamaConfig:
    """The depth head as a Llama of its own: the backbone's sizes, few layers, no vocabulary."""
    fields = config.text_config.to_dict() | {"num_hidden_layers": config.head_layers, "vocab_size": 1}
    fields |= dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    fields["intermediate_size"] = config.head_intermediate_size or fields["intermediate_size"]
    if heads := config.head_num_heads:
        fields |= {"num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": config.hidden_size // heads}
    return LlamaConfig(**fields)


def load_llama(config: LlamaConfig, state: dict[str, Tensor]) -> LlamaModel:
    """A transformers Llama whose parameters are these tensors themselves, not copies."""
    with torch.device("meta"):
        llama = LlamaModel(config)
    like = state["norm.weight"]
    state.setdefault("embed_tokens.weight", like.new_zeros(config.vocab_size, config.hidden_size))
    llama.load_state_dict(state, assign=True)
    llama.rotary_emb = LlamaRotaryEmbedding(config).to(like.device)
    return llama.eval()


def pad_left(rows: list[list[int]], pad_id: int, *, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and attention mask (R, T) of rows that end together."""
    longest = max(map(len, rows))
    ids = [[pad_id] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def choose_code(logits_NC: Tensor, settings: SamplingConfig, noise_NC: Tensor | None) -> Tensor:
    """Temperature, top-k, top-p and a draw, in the dtype of the logits; one code per row."""
    if settings.greedy:
        return logits_NC.argmax(-1)
    filtered_NC = filter_logits(logits_NC, settings)
    if noise_NC is None:
        return torch.multinomial(filtered_NC.softmax(-1), 1)[:, 0]
    return (filtered_NC + noise_NC).argmax(-1)


def filter_logits(logits_NC: Tensor, settings: SamplingConfig) -> Tensor:
    """Divide by the temperature, keep the top k, of these the top p; what is dropped becomes -inf."""
    logits_NC = logits_NC / max(settings.temperature, LEAST_TEMPERATURE)
    if settings.top_k is not None:
        kth_N1 = logits_NC.topk(min(settings.top_k, logits_NC.shape[-1])).values[:, -1:]
        logits_NC = logits_NC.masked_fill(logits_NC < kth_N1, -torch.inf)
    if settings.top_p < 1:
        sorted_NC, order_NC = logits_NC.sort(descending=True)
        is_dropped_NC = sorted_NC.softmax(-1).cumsum(-1) > settings.top_p
        is_dropped_NC = F.pad(is_dropped_NC[:, :-1], (1, 0), value=False)  # the one that crosses top-p stays
        logits_NC = logits_NC.masked_fill(is_dropped_NC.scatter(1, order_NC, is_dropped_NC), -torch.inf)
    return logits_NC


class UpstreamTokenizer:
    """Images to codes and back as the upstream network does it, sharing the weights of ours."""

    def __init__(self, tokenizer: UniTok) -> None:
        shared = {id(tensor): tensor for tensor in (*tokenizer.parameters(), *tokenizer.buffers())}
        self.network = copy.deepcopy(tokenizer, shared).eval()
        for module in self.network.modules():
            for name, child in module.named_children():
                if isinstance(child, Upsample):
                    setattr(module, name, NearestUpsample(child.conv))

    @torch.inference_mode()
    def encode(self, pixels_B3HW: Tensor) -> Tensor:
        """Codes (B, K, N)."""
        return upstream_nearest(self.network.quantizer, self.network.features(pixels_B3HW))

    @torch.inference_mode()
    def decode(self, codes_BKN: Tensor, *, grid: tuple[int, int]) -> Tensor:
        """Pixels (B, 3, H, W), one image after another."""
        return torch.cat([self.decode_one(codes_1KN, grid) for codes_1KN in codes_BKN.split(1)])

    def decode_one(self, codes_1KN: Tensor, grid: tuple[int, int]) -> Tensor:
        entries = []
        for codes_1N, codebook_CE in zip(codes_1KN.unbind(1), self.network.quantizer.codebooks, strict=True):
            entries.append(F.embedding(codes_1N, F.normalize(codebook_CE, dim=-1)))
        hidden_1ND = self.network.post_quant_proj(torch.cat(entries, dim=-1))
        return self.network.decoder(hidden_1ND, grid=grid).clamp(-1, 1)


@torch.inference_mode()
def upstream_nearest(quantizer: MultiCodebookQuantizer, features_BNZ: Tensor) -> Tensor:
    """Codebook by codebook: normalise features and entries, compare all with all; (B, K, N)."""
    codes = []
    slices = features_BNZ.chunk(quantizer.codebooks.shape[0], dim=-1)
    for features_BNE, codebook_CE in zip(slices, quantizer.codebooks, strict=True):
        features_ME = F.normalize(features_BNE.flatten(0, 1), dim=-1).float()
        similarity_MC = features_ME @ F.normalize(codebook_CE, dim=-1).float().T
        codes.append(similarity_MC.argmax(-1).view(features_BNE.shape[:2]))
    return torch.stack(codes, dim=1)


class NearestUpsample(nn.Module):
    """Repeat every pixel 2 x 2, then convolve 3 x 3, as written."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        return self.conv(F.interpolate(hidden_BCHW, scale_factor=2, mode="nearest"))
