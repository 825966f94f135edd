"""Sizes of the axes that the flows' graphs have, as far as a manifest tells them."""

from __future__ import annotations

from collections.abc import Mapping

from edgevqa.runtime.manifest import GraphSpec, Manifest, TextSpec

Range = tuple[int, int, int]
"""Least, usual and most."""
USUAL_QUESTION = 12  # tokens
ENCODER_MASK = "encoder_attention_mask"
CROSS = ("cross_key.", "cross_value.")
"""What the names of keys and values begin with that a decoder attends to beside its own."""
_READERS = {"qformer_input_ids": "qformer", "question_states": "fusion"}
"""Of tensors that a question is read into with a tokenizer of its own: its name in the manifest's `texts`."""


def question_words(manifest: Manifest, most: int = 0) -> Range:
    """Tokens of a question; the longest is `most`, or what the model's tokenizers allow where it is 0."""
    texts = [text for text in (manifest.text, *manifest.texts.values()) if text is not None]
    longest = most or max((text.max_tokens for text in texts), default=1)
    return 1, min(USUAL_QUESTION, longest), longest


def words_by_reader(manifest: Manifest, most: int = 0) -> dict[str, Range]:
    """Tokens of a question for each tokenizer of the manifest's `texts`, at most `most` where that is not 0.

    The keys are axes as `own_axes` knows them: each reader's graphs call theirs `words`, as the language model's do.
    """
    return {f"words.{name}": _words(text, most) for name, text in manifest.texts.items()}


def own_axes(graph: GraphSpec, axes: Mapping[str, Range]) -> Mapping[str, Range]:
    """The axes with the `words` of the tokenizer that reads questions for this graph."""
    names = {tensor.name for tensor in (*graph.inputs, *graph.outputs)}
    found = [axes[axis] for name, reader in _READERS.items() if name in names and (axis := f"words.{reader}") in axes]
    return {**axes, "words": found[0]} if found else axes


def _words(text: TextSpec, most: int) -> Range:
    longest = min(most or text.max_tokens, text.max_tokens)
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
