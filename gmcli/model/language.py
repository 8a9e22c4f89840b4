"""Run the language model with keys and values as plain tensors: what backends compile, one graph for every kind of call."""

import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb


class LanguageStep(nn.Module):
    """Run some tokens of every row behind what the rows have read before.

    Equals transformers' LlamaModel with a cache; keys and values go in and out as tensors, so that the graph has no state.
    Source: transformers/models/llama/modeling_llama.py.
    """

    def __init__(self, llm: LlamaForCausalLM) -> None:
        super().__init__()
        self.model = llm.model
        config = llm.config
        self.heads = config.num_attention_heads
        self.groups = config.num_key_value_heads or config.num_attention_heads
        self.head_size = config.hidden_size // config.num_attention_heads

    def forward(
        self,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        keep_past: torch.Tensor,
        keep_new: torch.Tensor,
        past: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the states of the new tokens after the final norm, [B,S,H], and their keys and values.

        embeddings: [B,S,H]. positions: [B,S] int64. keep_past: [B,C] bool, keep_new: [B,S] bool, False where a column is
        padding. past: [L,2,B,G,C,D]. Returns new keys and values as [L,2,B,G,S,D]. A column of `past` that is kept
        nowhere may hold anything finite, so a caller can pass a longer, partly filled buffer.
        """
        batch, new = embeddings.shape[:2]
        cos, sin = self.model.rotary_emb(embeddings, positions)
        causal = torch.ones(new, new, dtype=torch.bool, device=embeddings.device).tril()
        seen = torch.cat(
            [keep_past[:, None, :].expand(-1, new, -1), causal[None] & keep_new[:, None, :]], dim=-1
        )  # [B,S,C+S]
        # A query that sees nothing would be NaN: padding sees itself.
        itself = torch.eye(new, dtype=torch.bool, device=embeddings.device)
        seen = torch.cat([seen[..., : past.shape[4]], seen[..., past.shape[4] :] | itself], dim=-1)[:, None]
        hidden, present = embeddings, []
        for number, layer in enumerate(self.model.layers):
            x = layer.input_layernorm(hidden)
            attention = layer.self_attn
            q = attention.q_proj(x).view(batch, new, self.heads, self.head_size).transpose(1, 2)
            k = attention.k_proj(x).view(batch, new, self.groups, self.head_size).transpose(1, 2)
            v = attention.v_proj(x).view(batch, new, self.groups, self.head_size).transpose(1, 2)
            q, k = apply_rotary_pos_emb(q, k, cos, sin)
            present.append(torch.stack([k, v]))
            keys, values = torch.cat([past[number, 0], k], dim=2), torch.cat([past[number, 1], v], dim=2)
            if self.groups != self.heads:
                keys = keys.repeat_interleave(self.heads // self.groups, dim=1)
                values = values.repeat_interleave(self.heads // self.groups, dim=1)
            out = functional.scaled_dot_product_attention(q, keys, values, attn_mask=seen)
            hidden = hidden + attention.o_proj(out.transpose(1, 2).reshape(batch, new, -1))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return self.model.norm(hidden), torch.stack(present)
