"""Run segment-anything's image encoder faster than its own forward, over its own weights and with its results.

Its forward writes attention weights, [heads, 4096, 4096] of them, and reads them again for the relative position, for the
softmax and for the values; and it projects the padding of windows like real tokens. Here keys, queries and values are
computed for the real tokens only (what segment-anything computes for padding is the projection's bias), and attention is one
of three: `rows` takes one head and some rows of queries at a time, so that their weights stay in the processor's cache, for
a CPU; `bias` is SDPA with the relative position as a mask; `folded` is SDPA with the relative position as further channels of
queries and keys, which needs no mask and so any flash kernel will do.
Source: segment_anything/modeling/image_encoder.py; Li et al., MViTv2 (arXiv 2112.01526), equation 4.
"""

from typing import Literal

import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Attention, Block, get_rel_pos
from torch import nn
from torch.nn import functional

from gmcli.model.linear import Linear, plain_linear

AttentionKind = Literal["rows", "bias", "folded"]

# Rows of queries at a time: 256 x 4096 float32 weights are 4 MB. From 128 to 512 the times differ by 3 %.
_ROWS = 256


class ImageEncoder(nn.Module):
    """Hold an image encoder with the way to run it; what backends compile."""

    def __init__(self, encoder: ImageEncoderViT, attention: AttentionKind = "bias") -> None:
        super().__init__()
        self.encoder = encoder
        self.attention: AttentionKind = attention

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode preprocessed frames. pixels: [B,3,S,S]. Returns image_embeddings [B,C,S/16,S/16]."""
        return encode(self.encoder, pixels, self.attention)


def encode(
    encoder: ImageEncoderViT, pixels: torch.Tensor, attention: AttentionKind, linear: Linear = plain_linear
) -> torch.Tensor:
    """Encode preprocessed frames as ImageEncoderViT.forward does, within rounding.

    pixels: [B,3,S,S]. Returns image_embeddings [B,C,S/16,S/16].
    """
    x = encoder.patch_embed(pixels)
    if encoder.pos_embed is not None:
        x = x + encoder.pos_embed
    for block in encoder.blocks:
        assert isinstance(block, Block)
        x = x + _attend(block, block.norm1(x), attention, linear)
        hidden = linear(block.norm2(x), block.mlp.lin1.weight, block.mlp.lin1.bias, gelu=True)
        x = x + linear(hidden, block.mlp.lin2.weight, block.mlp.lin2.bias)
    embeddings: torch.Tensor = encoder.neck(x.permute(0, 3, 1, 2))
    return embeddings


def _attend(block: Block, x: torch.Tensor, kind: AttentionKind, linear: Linear) -> torch.Tensor:
    """Attend within windows, or over the whole image where the block has none. x: [B,h,w,C], normalised."""
    batch, height, width, channels = x.shape
    attention, size = block.attn, block.window_size
    qkv = linear(x, attention.qkv.weight, attention.qkv.bias)
    if size:
        down, right = -height % size, -width % size
        if down or right:
            # Padding is zero before the projection, so it is the bias behind it; and keys of padding take part.
            bias = attention.qkv.bias
            qkv = torch.cat([qkv, bias.expand(batch, height, right, -1)], dim=2)
            qkv = torch.cat([qkv, bias.expand(batch, down, width + right, -1)], dim=1)
        rows, columns = (height + down) // size, (width + right) // size
        windows = qkv.view(batch, rows, size, columns, size, 3 * channels).transpose(2, 3)
        out = _attention(attention, windows.reshape(-1, size, size, 3 * channels), kind, linear)
        out = out.view(batch, rows, columns, size, size, channels).transpose(2, 3)
        out = out.reshape(batch, height + down, width + right, channels)[:, :height, :width]
    else:
        out = _attention(attention, qkv, kind, linear).view(batch, height, width, channels)
    return linear(out, attention.proj.weight, attention.proj.bias)


def _attention(attention: Attention, qkv: torch.Tensor, kind: AttentionKind, linear: Linear) -> torch.Tensor:
    """Attend over all tokens of each grid. qkv: [N,h,w,3C]. Returns [N,h*w,C]."""
    count, height, width, channels = qkv.shape
    heads = attention.num_heads
    qkv = qkv.view(count, height * width, 3, heads, channels // 3 // heads)
    if kind == "rows":
        return _attention_in_rows(attention, qkv, (height, width), linear)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    rel_h, rel_w = relative_positions(attention, q, (height, width))
    if kind == "bias":
        bias = (rel_h.unsqueeze(-1) + rel_w.unsqueeze(-2)).flatten(-2)
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    else:
        out = functional.scaled_dot_product_attention(*fold(q, k, rel_h, rel_w, attention.scale), v, scale=1.0)
    return out.transpose(1, 2).reshape(count, height * width, channels // 3)


def _attention_in_rows(attention: Attention, qkv: torch.Tensor, size: tuple[int, int], linear: Linear) -> torch.Tensor:
    """Attend head by head and some rows of queries at a time. qkv: [N,h*w,3,heads,D]. Returns [N,h*w,heads*D]."""
    count, tokens, _, heads, head_size = qkv.shape
    height, width = size
    rows, columns = _distances(height, qkv.device), _distances(width, qkv.device)
    rows, columns = rows.repeat_interleave(width, dim=0), columns.repeat(height, 1)
    table_h, table_w = _table(attention.rel_pos_h, height), _table(attention.rel_pos_w, width)
    out = qkv.new_empty(count, tokens, heads, head_size)
    for number in range(count):
        for head in range(heads):
            q, k, v = qkv[number, :, :, head].unbind(1)
            q, k, v = q.contiguous(), k.contiguous(), v.t().contiguous()
            # Against all distances at once; then each query takes those from itself to the keys' rows and columns.
            rel_h = linear(q, table_h).gather(1, rows).unsqueeze(-1)
            rel_w = linear(q, table_w).gather(1, columns).unsqueeze(-2)
            q = q * attention.scale
            for start in range(0, tokens, _ROWS):
                part = slice(start, start + _ROWS)
                scores = linear(q[part], k).view(-1, height, width).add_(rel_h[part]).add_(rel_w[part])
                out[number, part, head] = linear(scores.view(-1, tokens).softmax(dim=-1), v)
    return out.flatten(2)


def _distances(size: int, device: torch.device) -> torch.Tensor:
    """Return for each query's place and each key's place the row of the table of relative positions, int64 [size,size]."""
    places = torch.arange(size, device=device)
    return places[:, None] - places[None, :] + size - 1


def _table(rel_pos: torch.Tensor, size: int) -> torch.Tensor:
    """Return the table of relative positions, [2*size-1,D], interpolated where it was made for another size."""
    if len(rel_pos) == 2 * size - 1:
        return rel_pos
    # Row i of segment-anything's [size,size,D] holds what query i adds for each key: first and last say it all.
    full = get_rel_pos(size, size, rel_pos)
    return torch.cat([full[0].flip(0), full[1:, 0]])


def relative_positions(
    attention: Attention, q: torch.Tensor, size: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a key's row and its column add to each query's score. q: [N,heads,h*w,D]. Returns [N,heads,h*w,h|w]."""
    height, width = size
    table_h = get_rel_pos(height, height, attention.rel_pos_h)
    table_w = get_rel_pos(width, width, attention.rel_pos_w)
    grid = q.reshape(*q.shape[:2], height, width, q.shape[-1])
    rel_h = torch.einsum("nahwc,hkc->nahwk", grid, table_h)
    rel_w = torch.einsum("nahwc,wkc->nahwk", grid, table_w)
    return rel_h.flatten(2, 3), rel_w.flatten(2, 3)


def fold(
    q: torch.Tensor, k: torch.Tensor, rel_h: torch.Tensor, rel_w: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Append the relative position to queries, and one-hot rows and columns to keys: their product adds the bias.

    q, k: [N,heads,h*w,D]. Returns both as [N,heads,h*w,D+h+w], for attention with scale 1.
    """
    height, width = rel_h.shape[-1], rel_w.shape[-1]
    rows = torch.eye(height, dtype=k.dtype, device=k.device).repeat_interleave(width, dim=0)
    columns = torch.eye(width, dtype=k.dtype, device=k.device).repeat(height, 1)
    place = torch.cat([rows, columns], dim=1).expand(*k.shape[:2], -1, -1)
    return torch.cat([q * scale, rel_h, rel_w], dim=-1), torch.cat([k, place], dim=-1)
