"""How a checkpoint's answers end, and its defaults of generation, from its own configuration."""

from __future__ import annotations

from typing import Any

from edgevqa.export.sources import reason_of
from edgevqa.runtime.errors import CheckpointError
from edgevqa.runtime.manifest import GenerationSpec

MAX_NEW_TOKENS = 32  # where the checkpoint names none: answers to questions are short


def generation_spec(
    model: Any, *, max_context: int | None = None, start: int | None = None, most: int = MAX_NEW_TOKENS
) -> GenerationSpec:
    """The specification that `model.generation_config` gives; `start` is the decoder's first token where one is needed.

    Token ids that it lacks are looked up in the text model's configuration; a missing pad token is the end token.
    Raises `CheckpointError` for values that are no numbers.
    """
    try:
        return _specification(model, max_context, start, most)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"The checkpoint's generation_config.json or config.json has a value that is no number: {reason_of(error)}."
        ) from error


def _specification(model: Any, max_context: int | None, start: int | None, most: int) -> GenerationSpec:
    generation, text = model.generation_config, model.config.get_text_config(decoder=True)

    def token(name: str) -> Any:
        found = getattr(generation, name, None)
        return getattr(text, name, None) if found is None else found

    ends = token("eos_token_id")
    ends = [int(end) for end in (ends if isinstance(ends, (list, tuple)) else [ends]) if end is not None] or [0]
    pad = token("pad_token_id")
    start = start if start is not None else token("decoder_start_token_id")
    start = start if start is not None else token("bos_token_id")
    return GenerationSpec(
        decoder_start_token_id=ends[0] if start is None else int(start),
        eos_token_id=ends[0],
        more_eos_token_ids=ends[1:],
        pad_token_id=ends[0] if pad is None else int(pad),
        max_new_tokens=int(generation.max_new_tokens or most),
        num_beams=int(generation.num_beams or 1),
        length_penalty=float(generation.length_penalty if generation.length_penalty is not None else 1.0),
        repetition_penalty=float(generation.repetition_penalty or 1.0),
        max_context=max_context,
    )
