"""Sizes of the axes that the flows' graphs have, as far as a manifest tells them."""

from __future__ import annotations

from collections.abc import Mapping

from edgevqa.runtime.manifest import GraphSpec, Manifest

Range = tuple[int, int, int]
"""Least, usual and most."""
USUAL_QUESTION = 12  # tokens
ENCODER_MASK = "encoder_attention_mask"
CROSS = ("cross_key.", "cross_value.")
"""What the names of keys and values begin with that a decoder attends to beside its own."""


def question_words(manifest: Manifest, most: int = 0) -> Range:
    """Tokens of a question; the longest is `most`, or what the model's tokenizers allow where it is 0."""
    texts = [text for text in (manifest.text, *manifest.texts.values()) if text is not None]
    longest = most or max((text.max_tokens for text in texts), default=1)
    return 1, min(USUAL_QUESTION, longest), longest


def picture_tokens(manifest: Manifest, graphs: Mapping[str, GraphSpec]) -> int | None:
    """The most tokens that a picture takes in the language model, where that is known."""
    for graph in graphs.values():
        for tensor in (*graph.inputs, *graph.outputs):
            if tensor.name == "image_embeds" and len(tensor.shape) == 3 and isinstance(tensor.shape[1], int):
                return tensor.shape[1]
    return None if manifest.image is None else manifest.image.tokens


def reads_prompts(graphs: Mapping[str, GraphSpec]) -> bool:
    """Whether a question is what a decoder's answer begins with, because no encoder reads it."""
    names = [tensor.name for tensor in graphs["language_decoder"].inputs] if "language_decoder" in graphs else []
    return any(name.startswith(CROSS) for name in names) and ENCODER_MASK not in names


def encoder_keys(manifest: Manifest, graphs: Mapping[str, GraphSpec], words: Range) -> Range | None:
    """Encoder states that a decoder attends to: the picture's tokens, and the question's where the encoder reads it."""
    tokens = picture_tokens(manifest, graphs)
    if tokens is None or reads_prompts(graphs):  # a picture's keys alone have a number
        return None
    return tokens + words[0], tokens + words[1], tokens + words[2]
