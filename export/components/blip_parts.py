"""What all BLIP checkpoints have: a vision transformer, a tokenizer, and the pictures and questions they are checked on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from edgevqa.export import assets
from edgevqa.export.components.blip import BlipVision
from edgevqa.export.components.cross_cases import real_questions
from edgevqa.export.samples import arrays, random_pixels, random_questions
from edgevqa.export.spec import Case, GraphPlan, Loaded, Samples, Tokenized

PROMPT_TOKENS = 64  # of a caption's prompt
WORDS = 9  # of random questions, the padding included


def image_size(model: Any) -> tuple[int, int]:
    """Height and width of a picture in pixels."""
    size = model.config.vision_config.image_size
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def image_shape(model: Any) -> tuple[int, int]:
    """Tokens of a picture (the class token is the first), and their width."""
    _, tokens, width = model.vision_model.embeddings.position_embedding.shape
    return int(tokens), int(width)


def vision_plan(model: Any, *outputs: str, module: BlipVision | None = None) -> GraphPlan:
    """The graph `vision`, of `module` or of the states alone, with its outputs' names."""
    height, width = image_size(model)
    return GraphPlan(
        name="vision",
        module=module or BlipVision(model.vision_model),
        args=(random_pixels(2, height=height, width=width),),
        dynamic_shapes=({0: "image"},),
        input_names=["pixel_values"],
        output_names=[*outputs],
    )


def vision_case(pixels: Tensor, expected: Mapping[str, Tensor], samples: Samples) -> Case:
    """A case of the graph `vision`."""
    return Case(graph="vision", samples=samples, inputs=arrays({"pixel_values": pixels}), expected=arrays(expected))


def tokenized(folder: Path, model: Any, *, prompts: bool = False, required: bool = True) -> Tokenized:
    """The tokenizer; a caption's prompt goes without the tokens around a text. Where not `required`, no text is one too."""
    data, text = assets.tokenizer_bytes(folder), model.config.text_config
    spec = assets.text_spec(
        data,
        cleaning="none",
        max_tokens=min(PROMPT_TOKENS, text.max_position_embeddings // 2) if prompts else text.max_position_embeddings,
        pad_token_id=text.pad_token_id,
        eos_token_id=None if prompts else text.sep_token_id,
        vocab_size=text.vocab_size,
        special_tokens=not prompts,
        required=required and not prompts,
        tidied=assets.tidies_answers(folder, data),
    )
    return Tokenized(data=data, spec=spec)


def questions(loaded: Loaded, count: int, samples: Samples) -> tuple[Tensor, Tensor]:
    """Ids and mask (count, words) of random or packaged questions, with padding."""
    if samples == "real":
        return real_questions(loaded, count)
    return random_questions(count, WORDS, vocab_size=loaded.model.config.text_config.vocab_size)
