"""The Q-Former of BLIP-2 and InstructBLIP: learned queries that read a picture, and a text beside them.

Source: BLIP-2 (Li et al. 2023), InstructBLIP (Dai et al. 2023), as transformers computes them.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgevqa.export.components.attention import MASKED, attend, merge_heads, split_heads

Sight = Literal["bidirectional", "causal", "uni-modal"]
"""What queries and words see of each other, as BLIP-2 names its three attention masks."""


def sight_bias(sight: Sight, queries: int, attention_mask: Tensor) -> Tensor:
    """The additive self-attention bias of `queries` and of the words that `attention_mask` (batch, words) tells.

    `bidirectional` (matching): everyone sees everyone, (batch, 1, 1, queries + words). `uni-modal` (contrastive): queries
    see queries, words see words. `causal` (generation): queries see queries, a word sees these and the words up to it.
    The last two are (batch, 1, queries + words, queries + words).
    """
    padded = 1.0 - attention_mask.to(torch.float32)  # (batch, words)
    hidden = nn.functional.pad(padded, (queries, 0))[:, None, None, :]
    if sight == "bidirectional":
        return hidden * MASKED
    places = torch.arange(queries + attention_mask.shape[1], device=attention_mask.device)
    word = (places >= queries).to(torch.float32)
    across = word[None, :] * (1.0 - word)[:, None]  # a query that looks at a word
    if sight == "uni-modal":
        across = across + (1.0 - word)[None, :] * word[:, None]
    else:
        across = across + word[None, :] * word[:, None] * (places[None, :] > places[:, None]).to(torch.float32)
    return torch.maximum(hidden, across[None, None]) * MASKED


class Attention(nn.Module):
    """Multi-head attention with its output layer, residual and LayerNorm; the keys may come from elsewhere."""

    def __init__(self, theirs: Any) -> None:
        super().__init__()
        self.attention, self.output = theirs.attention, theirs.output
        self.heads, self.scale = int(theirs.attention.num_attention_heads), float(theirs.attention.scaling)

    def forward(self, states: Tensor, keys: Tensor, bias: Tensor | None = None) -> Tensor:
        """`states` (batch, length, width) read `keys` (batch or 1, length, width)."""
        query = split_heads(self.attention.query(states) * self.scale, self.heads)
        key, value = (split_heads(each(keys), self.heads) for each in (self.attention.key, self.attention.value))
        mixed = self.output.dense(merge_heads(attend(query, key, value, bias)))
        out: Tensor = self.output.LayerNorm(mixed + states)
        return out


class Layer(nn.Module):
    """One layer: everyone attends to everyone, queries to the picture (in some layers), then each kind its own feed-forward.

    In the `last` layer nothing is computed of the words, which nobody reads.
    """

    def __init__(self, theirs: Any, *, queries: int, words: bool, last: bool) -> None:
        super().__init__()
        self.queries, self.last = queries, last
        self.attention = Attention(theirs.attention)
        if queries:
            self.crossattention = Attention(theirs.crossattention) if theirs.has_cross_attention else None
            self.intermediate_query, self.output_query = theirs.intermediate_query, theirs.output_query
        if words and not (last and queries):
            self.intermediate, self.output = theirs.intermediate, theirs.output

    def forward(self, states: Tensor, image_states: Tensor | None, bias: Tensor | None) -> Tensor:
        """`states` (batch, queries + words, width); of the last layer with queries these alone come back."""
        if not self.queries:
            return _feed_forward(self.intermediate, self.output, self.attention(states, states, bias))
        if self.last and bias is not None and bias.shape[2] != 1:
            bias = bias[:, :, : self.queries]
        seen = self.attention(states[:, : self.queries] if self.last else states, states, bias)
        queries = seen[:, : self.queries]
        if self.crossattention is not None and image_states is not None:
            queries = self.crossattention(queries, image_states)
        queries = _feed_forward(self.intermediate_query, self.output_query, queries)
        if not hasattr(self, "intermediate"):
            return queries
        return torch.cat([queries, _feed_forward(self.intermediate, self.output, seen[:, self.queries :])], dim=1)


class QFormer(nn.Module):
    """The layers of transformers' Q-Former over queries, words, or both. LayerNorm of the embeddings is the caller's.

    `all_states` keeps the words' states of the last layer, as the masks of pre-training need them.
    """

    encoder: Any

    def __init__(self, theirs: Any, *, queries: int, words: bool, all_states: bool = False) -> None:
        super().__init__()
        self.encoder = nn.Module()
        count = len(theirs.encoder.layer)
        self.encoder.layer = nn.ModuleList(
            Layer(layer, queries=queries, words=words, last=number == count - 1 and not all_states)
            for number, layer in enumerate(theirs.encoder.layer)
        )

    def forward(self, states: Tensor, image_states: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """(batch, queries + words, width) to (batch, queries, width), or (batch, words, width) without queries."""
        out: Tensor = states
        for layer in self.encoder.layer:
            out = layer(out, image_states, bias)
        return out


def embed_words(embeddings: Any, input_ids: Tensor) -> Tensor:
    """Words and their positions, (batch, words, width)."""
    out: Tensor = embeddings.word_embeddings(input_ids) + embeddings.position_embeddings.weight[: input_ids.shape[1]]
    return out


def _feed_forward(intermediate: Any, output: Any, states: Tensor) -> Tensor:
    hidden = intermediate.intermediate_act_fn(intermediate.dense(states))
    out: Tensor = output.LayerNorm(output.dense(hidden) + states)
    return out
