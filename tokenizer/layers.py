"""Layers of the image tokenizer, and the encoder and decoder (ViTamin, arXiv:2404.02132) that they make up.

Convolutions run in channels-last memory: there the channel norm is a plain LayerNorm on a free view, and convolutions
on a CPU are 1.3 to 2 times faster. Parameter names follow UniTok's released checkpoints.

Letters: B batch, N positions, D hidden width, H heads, E head width, C channels, H W pixels at the current resolution,
I input width, O output width, M = B * N patches.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tokenizer.config import Padding, UniTokConfig

NORM_EPS = 1e-6  # of UniTok's blocks; the outer norms of its projections keep PyTorch's 1e-5
LONGEST_EAGER_ATTENTION = 256  # positions; beyond, the scores cost more memory than the fused kernel costs time

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(query, key, value), each (B, H, N, E), to the attended values of the same shape."""


def scaled_attention(query_BHNE: Tensor, key_BHNE: Tensor, value_BHNE: Tensor, *, causal: bool) -> Tensor:
    """Scaled dot-product attention. For short sequences on a CPU, the backward pass of PyTorch's fused kernel takes
    eight times as long as that of plain matrix products, so training uses those."""
    num_positions = query_BHNE.shape[2]
    if query_BHNE.device.type != "cpu" or not torch.is_grad_enabled() or num_positions > LONGEST_EAGER_ATTENTION:
        return F.scaled_dot_product_attention(query_BHNE, key_BHNE, value_BHNE, is_causal=causal)
    scores_BHNN = (query_BHNE * query_BHNE.shape[-1] ** -0.5) @ key_BHNE.transpose(2, 3)
    if causal:
        is_future_NN = torch.ones(num_positions, num_positions, dtype=torch.bool).triu(1)
        scores_BHNN = scores_BHNN.masked_fill(is_future_NN, float("-inf"))
    return scores_BHNN.softmax(dim=-1) @ value_BHNE


class GeGLU(nn.Module):
    """Gated MLP with its own input norm (Shazeer 2020, arXiv:2002.05202) and the tanh approximation of GELU. The
    released network normalises twice, here and in the caller; its weights expect it."""

    def __init__(self, width: int, inner_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.w0 = nn.Linear(width, inner_width)
        self.w1 = nn.Linear(width, inner_width)
        self.w2 = nn.Linear(inner_width, width)

    def forward(self, hidden_BND: Tensor) -> Tensor:
        hidden_BND = self.norm(hidden_BND)
        return self.w2(F.gelu(self.w0(hidden_BND), approximate="tanh") * self.w1(hidden_BND))


class DropPath(nn.Module):
    """Stochastic depth (arXiv:1603.09382): in training, drop a residual branch for whole samples."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, branch_BND: Tensor) -> Tensor:
        if not self.training or self.probability == 0.0:
            return branch_BND
        keep = 1.0 - self.probability
        is_kept_B11 = branch_BND.new_empty(branch_BND.shape[0], 1, 1).bernoulli_(keep)
        return branch_BND * is_kept_B11 / keep


class SelfAttention(nn.Module):
    """Multi-head self-attention with a fused projection of query, key and value."""

    def __init__(self, width: int, num_heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.causal = causal
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, hidden_BND: Tensor) -> Tensor:
        query, key, value = self.qkv(hidden_BND).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended_BHNE = scaled_attention(query, key, value, causal=self.causal)
        return self.proj(attended_BHNE.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Pre-norm attention and GeGLU, each with its own residual."""

    def __init__(self, width: int, num_heads: int, *, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = SelfAttention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = GeGLU(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, hidden_BND: Tensor) -> Tensor:
        hidden_BND = hidden_BND + self.drop_path(self.attn(self.norm1(hidden_BND)))
        return hidden_BND + self.drop_path(self.mlp(self.norm2(hidden_BND)))


class TransformerStack(nn.ModuleList):
    """`depth` blocks with the config's sizes; the stochastic depth grows linearly from 0 to `drop_path`."""

    recompute = False  # activation checkpointing: recompute the blocks' activations in the backward pass

    def __init__(self, config: UniTokConfig, depth: int) -> None:
        rates = [config.drop_path * index / max(1, depth - 1) for index in range(depth)]
        super().__init__(
            TransformerBlock(config.width, config.num_heads, mlp_ratio=config.mlp_ratio, drop_path=rate)
            for rate in rates
        )

    def forward(self, hidden_BND: Tensor) -> Tensor:
        for block in self:
            if self.recompute and self.training:
                hidden_BND = checkpoint(block, hidden_BND, use_reentrant=False)
            else:
                hidden_BND = block(hidden_BND)
        return hidden_BND


class ChannelNorm(nn.LayerNorm):
    def __init__(self, width: int) -> None:
        super().__init__(width, eps=NORM_EPS)

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        return super().forward(hidden_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Upsample(nn.Module):
    """Nearest upsampling by 2, then a 3x3 convolution. Computed as one transposed convolution of stride 2 whose 4x4
    kernel holds the 3x3 taps summed over the repeated pixels: exact, 9/4 fewer multiplications, and no upsampled input
    in memory."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_width, out_width, 3, padding=1)

    def fold(self) -> Tensor:
        # Output row o reads upsampled row o + t - 1 through tap t; upsampled row 2i + a is input row i. So input row i
        # reaches output row 2i + m - 1 through the taps with t = a + 2 - m, a in {0, 1}.
        flipped_IO33 = self.conv.weight.transpose(0, 1).flip(2, 3)
        tall_IO43 = F.pad(flipped_IO33, (0, 0, 0, 1)) + F.pad(flipped_IO33, (0, 0, 1, 0))
        return F.pad(tall_IO43, (0, 1)) + F.pad(tall_IO43, (1, 0))

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        return F.conv_transpose2d(hidden_BCHW, self.fold(), self.conv.bias, stride=2, padding=1)


class FoldedUpsample(nn.Module):
    """`Upsample` for inference: its kernel is folded once."""

    def __init__(self, upsample: Upsample) -> None:
        super().__init__()
        self.kernel_IO44 = nn.Parameter(upsample.fold().detach(), requires_grad=False)
        self.bias = upsample.conv.bias

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        return F.conv_transpose2d(hidden_BCHW, self.kernel_IO44, self.bias, stride=2, padding=1)


class MBConv(nn.Module):
    """Inverted bottleneck (ViTamin, arXiv:2404.02132): norm, 1x1, depthwise 3x3, 1x1, plus a shortcut."""

    def __init__(self, in_width: int, out_width: int, inner_width: int, *, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.pre_norm = ChannelNorm(in_width)
        self.conv1_1x1 = nn.Conv2d(in_width, inner_width, 1)
        self.conv2_kxk = nn.Conv2d(inner_width, inner_width, 3, stride=stride, padding=1, groups=inner_width)
        self.conv3_1x1 = nn.Conv2d(inner_width, out_width, 1)
        self.expand = nn.Conv2d(in_width, out_width, 1) if in_width != out_width else nn.Identity()

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        shortcut_BCHW = hidden_BCHW
        if self.stride == 2:
            shortcut_BCHW = F.avg_pool2d(hidden_BCHW, 3, stride=2, padding=1, count_include_pad=False)
        hidden_BCHW = F.gelu(self.conv1_1x1(self.pre_norm(hidden_BCHW)))
        hidden_BCHW = F.gelu(self._depthwise(hidden_BCHW))
        return self.conv3_1x1(hidden_BCHW) + self.expand(shortcut_BCHW)

    def _depthwise(self, hidden_BCHW: Tensor) -> Tensor:
        """On a CPU, the backward pass of a strided depthwise convolution is eight times slower in bfloat16."""
        if self.stride == 1 or hidden_BCHW.device.type != "cpu" or not torch.is_grad_enabled():
            return self.conv2_kxk(hidden_BCHW)
        with torch.autocast("cpu", enabled=False):
            return self.conv2_kxk(hidden_BCHW.to(self.conv2_kxk.weight.dtype)).to(hidden_BCHW.dtype)


class UpsamplingMBConv(nn.Module):
    """MBConv that doubles the resolution between its first 1x1 and its depthwise convolution."""

    def __init__(self, in_width: int, out_width: int, inner_width: int) -> None:
        super().__init__()
        self.shortcut = Upsample(in_width, out_width)
        self.pre_norm = ChannelNorm(in_width)
        self.conv1_1x1 = nn.Conv2d(in_width, inner_width, 1)
        self.up = Upsample(inner_width, inner_width)
        self.conv2_kxk = nn.Conv2d(inner_width, inner_width, 3, padding=1, groups=inner_width)
        self.conv3_1x1 = nn.Conv2d(inner_width, out_width, 1)

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        shortcut_BCHW = self.shortcut(hidden_BCHW)
        hidden_BCHW = self.up(F.gelu(self.conv1_1x1(self.pre_norm(hidden_BCHW))))
        return self.conv3_1x1(F.gelu(self.conv2_kxk(hidden_BCHW))) + shortcut_BCHW


class ProjectionAttention(nn.Module):
    """Attention whose inner width is the larger of both sides; heads are averaged when narrowing, else concatenated."""

    zero_k_bias: Tensor

    def __init__(self, in_width: int, out_width: int, num_heads: int, *, causal: bool) -> None:
        super().__init__()
        inner_width = max(in_width, out_width)
        if inner_width % num_heads:
            raise ValueError(f"projection_heads must divide the width {inner_width}, got {num_heads}; change it")
        self.num_heads = num_heads
        self.causal = causal
        self.averages_heads = in_width > out_width
        self.out_width = out_width
        self.qkv = nn.Linear(in_width, 3 * inner_width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(inner_width))
        self.v_bias = nn.Parameter(torch.zeros(inner_width))
        self.register_buffer("zero_k_bias", torch.zeros(inner_width))
        self.proj = nn.Linear(out_width, out_width)

    def forward(self, hidden_BNI: Tensor, *, attend: Attend | None = None) -> Tensor:
        bias = torch.cat((self.q_bias, self.zero_k_bias.to(self.q_bias.dtype), self.v_bias))
        # else adapted, quantized or offloaded
        is_plain = type(self.qkv) is nn.Linear and not hasattr(self.qkv, "_hf_hook")
        qkv = F.linear(hidden_BNI, self.qkv.weight, bias) if is_plain else self.qkv(hidden_BNI) + bias
        query, key, value = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if attend is None:
            attend = partial(scaled_attention, causal=self.causal)
        attended_BHNE = attend(query, key, value)
        if not self.averages_heads:
            return self.proj(attended_BHNE.transpose(1, 2).flatten(2))
        mean_BNE = attended_BHNE.mean(dim=1)
        if mean_BNE.shape[-1] != self.out_width:
            mean_BNE = F.adaptive_avg_pool1d(mean_BNE, self.out_width)
        return self.proj(mean_BNE)


class AttentionProjection(nn.Module):
    """(B, N, in_width) to (B, N, out_width): a linear path plus attention, then a GeGLU. Stands on both sides of the
    quantizer, and embeds codes for a language model (causal there)."""

    def __init__(self, in_width: int, out_width: int, num_heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(in_width)
        self.norm3 = nn.LayerNorm(in_width)
        self.attn = ProjectionAttention(in_width, out_width, num_heads, causal=causal)
        self.proj = nn.Linear(in_width, out_width)
        self.norm2 = nn.LayerNorm(out_width)
        self.mlp = GeGLU(out_width, 2 * out_width)

    def forward(self, hidden_BNI: Tensor, *, attend: Attend | None = None) -> Tensor:
        """`attend` replaces the attention over the whole sequence, so that a caller can cache keys and values."""
        hidden_BNO = self.proj(self.norm3(hidden_BNI)) + self.attn(self.norm1(hidden_BNI), attend=attend)
        return hidden_BNO + self.mlp(self.norm2(hidden_BNO))


def build_projection(config: UniTokConfig, in_width: int, out_width: int) -> nn.Module:
    """The configured layer between hidden states and code vectors."""
    if config.projection == "linear":
        return nn.Linear(in_width, out_width)
    causal = config.projection_attention == "causal"
    return AttentionProjection(in_width, out_width, config.projection_heads, causal=causal)


class Stem(nn.Module):
    """Two 3x3 convolutions; the first halves the resolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.norm1 = ChannelNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        return self.conv2(F.gelu(self.norm1(self.conv1(pixels_B3HW))))


class Pool(nn.Module):
    """Halve the resolution once more and widen to the transformer's width."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(in_width)
        self.proj = nn.Conv2d(in_width, out_width, 3, stride=2, padding=1)

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        return self.proj(self.norm(hidden_BCHW))


class Encoder(nn.Module):
    """Stem, convolution stages, pool, transformer blocks, norm. No position embedding, no class token."""

    def __init__(self, config: UniTokConfig) -> None:
        super().__init__()
        self.stem = Stem(config.stem_width)
        self.stages = nn.ModuleList()
        in_width = config.stem_width
        for width, depth in zip(config.stage_widths, config.stage_depths, strict=True):
            inner_width = width * config.conv_expansion
            first = MBConv(in_width, width, inner_width, stride=2)
            rest = (MBConv(width, width, inner_width) for _ in range(depth - 1))
            self.stages.append(nn.Sequential(first, *rest))
            in_width = width
        self.pool = Pool(in_width, config.width)
        self.blocks = TransformerStack(config, config.depth)
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        hidden_BCHW = self.stem(pixels_B3HW.contiguous(memory_format=torch.channels_last))
        for stage in self.stages:
            hidden_BCHW = stage(hidden_BCHW)
        hidden_BND = self.pool(hidden_BCHW).flatten(2).transpose(1, 2)
        return self.norm(self.blocks(hidden_BND))


class PixelHead(nn.Module):
    """The last upsampling and the colors."""

    def __init__(self, width: int, *, padding: Padding) -> None:
        super().__init__()
        self.conv1 = Upsample(width, width)
        self.norm1 = ChannelNorm(width)
        self.conv2 = nn.Conv2d(width, 3, 3, padding=1, padding_mode=padding)

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        return self.conv2(F.gelu(self.norm1(self.conv1(hidden_BCHW))))


class Decoder(nn.Module):
    """Transformer blocks, norm, upsampling stages. The output is not clamped to [-1, 1]; callers do that."""

    def __init__(self, config: UniTokConfig) -> None:
        super().__init__()
        self.blocks = TransformerStack(config, config.decoder_depth)
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        in_width = config.decoder_widths[0]
        self.entry = Upsample(config.width, in_width)
        self.stages = nn.ModuleList()
        for width, depth in zip(config.decoder_widths, config.decoder_depths, strict=True):
            inner_width = width * config.decoder_expansion
            first = UpsamplingMBConv(in_width, width, inner_width)
            rest = (MBConv(width, width, inner_width) for _ in range(depth - 1))
            self.stages.append(nn.Sequential(first, *rest))
            in_width = width
        self.head = PixelHead(in_width, padding=config.decoder_padding)

    @property
    def last_weight(self) -> Tensor:
        """Where training compares the gradients of its losses (adaptive GAN weight)."""
        return self.head.conv2.weight

    def forward(self, hidden_BND: Tensor, *, grid: tuple[int, int]) -> Tensor:
        hidden_BND = self.norm(self.blocks(hidden_BND))
        # The view is already channels-last in memory, so the convolutions stay there.
        hidden_BCHW = self.entry(hidden_BND.unflatten(1, grid).permute(0, 3, 1, 2))
        for stage in self.stages:
            hidden_BCHW = stage(hidden_BCHW)
        return self.head(hidden_BCHW)


def cut_into_patches(pixels_B3HW: Tensor, size: int) -> Tensor:
    """Every patch as an image of its own, row by row: (M, 3, size, size)."""
    rows_B3RsCs = pixels_B3HW.unflatten(2, (-1, size)).unflatten(4, (-1, size))  # (B, 3, rows, size, columns, size)
    return rows_B3RsCs.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def initialise(model: Any) -> None:
    """Initialise a `UniTok` in place, as UniTok's training does.

    | where | what |
    |---|---|
    | encoder, decoder and projections, linear | truncated normal, std 0.02; bias 0 |
    | encoder convolutions | normal, std sqrt(2 / fan_out); bias 0; the pool keeps PyTorch's default |
    | decoder convolutions | Xavier normal, gain 0.5; bias 0 |
    | codebooks | uniform within 1 / (36 sqrt(code_width)) |
    | text tower | OpenCLIP's: attention std width^-0.5, outputs scaled by (2 layers)^-0.5, embeddings 0.02 and 0.01 |
    | joint projection | PyTorch's default |
    | norms | 1 and 0 (PyTorch's default) |
    """
    if next(model.parameters()).is_meta:  # nothing to set, and trying to imports torch's compiler
        return
    for name, module in model.named_modules():
        if name.startswith(("text_encoder", "encoder.pool")) or name == "projection":
            continue
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Conv2d) and name.startswith("decoder"):
            nn.init.xavier_normal_(module.weight, gain=0.5)
        elif isinstance(module, nn.Conv2d):
            fan_out = module.weight[:, 0].numel() / module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)
    bound = model.quantizer.codebooks.shape[-1] ** -0.5 / 36
    nn.init.uniform_(model.quantizer.codebooks, -bound, bound)
    if model.config.has_text_tower:
        initialise_text_tower(model.text_encoder)


def initialise_text_tower(tower: Any) -> None:
    """OpenCLIP's scheme, in place."""
    width = tower.token_embedding.weight.shape[1]
    nn.init.normal_(tower.token_embedding.weight, std=0.02)
    nn.init.normal_(tower.positional_embedding, std=0.01)
    nn.init.normal_(tower.projection, std=width**-0.5)
    output_std = width**-0.5 * (2 * len(tower.blocks)) ** -0.5
    for block in tower.blocks:
        nn.init.normal_(block.attn.qkv.weight, std=width**-0.5)
        nn.init.normal_(block.attn.proj.weight, std=output_std)
        nn.init.normal_(block.widen.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(block.narrow.weight, std=output_std)
        nn.init.zeros_(block.attn.qkv.bias)
        nn.init.zeros_(block.attn.proj.bias)
