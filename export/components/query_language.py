"""What BLIP-2 and InstructBLIP share behind their vision: the places of a picture in a prompt, and the language models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from tokenizers import Tokenizer
from torch import Tensor

from edgevqa.export import assets
from edgevqa.export.answers import greedy
from edgevqa.export.components import t5_plans
from edgevqa.export.components.causal_cases import decoder_cases, make_prompt
from edgevqa.export.components.llama import LlamaDecoder
from edgevqa.export.components.llama import max_context as llama_context
from edgevqa.export.components.opt import OptDecoder
from edgevqa.export.generation import generation_spec
from edgevqa.export.spec import Case, GraphPlan, Loaded, Samples, Tokenized
from edgevqa.runtime.errors import CheckpointError
from edgevqa.runtime.manifest import GenerationSpec
from edgevqa.runtime.preprocessing import Prepared
from edgevqa.runtime.text import PLAIN

MAX_QUESTION_TOKENS = 128
IMAGE_TOKEN = "<image>"
_FLOWS = {"opt": "decoder_only", "llama": "decoder_only", "t5": "encoder_decoder"}


def flow(model: Any) -> str:
    """The pipeline of the model's language head. Raises `CheckpointError` for a head that is not exported."""
    head = model.config.text_config.model_type
    if head not in _FLOWS:
        raise CheckpointError(f"The checkpoint's language model is '{head}'; expected one of {', '.join(_FLOWS)}.")
    return _FLOWS[head]


def language_plans(model: Any) -> dict[str, Callable[[], GraphPlan]]:
    """The graphs of the language model, in the order in which they run."""
    language, head = model.language_model, model.config.text_config.model_type
    if head == "t5":
        return {
            t5_plans.ENCODER: lambda: t5_plans.encoder_plan(language, queries_of(model)),
            t5_plans.DECODER: lambda: t5_plans.decoder_plan(language),
        }
    if head == "opt":
        return {"language_decoder": lambda: OptDecoder(language).plan()}
    return {"language_decoder": lambda: LlamaDecoder(language.model, language.lm_head).plan()}


def queries_of(model: Any) -> int:
    """Embeddings of a picture."""
    return int(model.query_tokens.shape[1])


def language_text(model: Any, folder: Path, template: str | None = None) -> tuple[Tokenized, GenerationSpec]:
    """The language model's tokenizer and defaults. Both models put the picture before everything else of a prompt.

    With a `template` a picture may be described without a question (see `describes`); without, the question is the prompt.

    `generate` of both asks the language model's own generation defaults, never those beside the checkpoint.
    """
    generation = generation_spec(model.language_model, max_context=_max_context(model))
    data = assets.tokenizer_bytes(folder)
    decoder_only = flow(model) == "decoder_only"
    spec = assets.text_spec(
        data,
        cleaning="none",
        max_tokens=MAX_QUESTION_TOKENS,
        pad_token_id=generation.pad_token_id,
        eos_token_id=generation.eos_token_id,
        vocab_size=model.config.text_config.vocab_size,
        template=template or PLAIN,
        required=template is None or not describes(model, data),
    )
    token = place_of_picture(model, data)
    spec = msgspec.structs.replace(
        spec,
        image_token_id=token if decoder_only else None,
        eos_token_id=None if decoder_only else spec.eos_token_id,  # a prompt that is cut does not end an answer
        special_token_ids=sorted({*spec.special_token_ids, token}),
        tidied=assets.tidies_answers(folder, data),
    )
    return Tokenized(spec=spec, data=data), generation


def describes(model: Any, data: bytes) -> bool:
    """Whether no words at all are the prompt that `generate` makes where it is given none: pictures can then be described."""
    first = model.config.text_config.bos_token_id
    return first is not None and Tokenizer.from_str(data.decode("utf-8")).encode("").ids == [first]


def qformer_text(data: bytes, config: Any, **others: Any) -> Tokenized:
    """The tokenizer of the Q-Former, a BERT's, whose configuration is `config`; `others` as `assets.text_spec` takes them."""
    tokenizer = assets.read_tokenizer(data)
    tokenizer.no_padding()
    closed = tokenizer.encode("a").ids
    if not closed:
        raise CheckpointError(
            "The Q-Former's tokenizer reads the word 'a' as nothing. Take the one of the model's page."
        )
    spec = assets.text_spec(
        data,
        cleaning="none",
        max_tokens=min(MAX_QUESTION_TOKENS, int(config.max_position_embeddings)),
        pad_token_id=int(config.pad_token_id or 0),
        eos_token_id=closed[-1],
        **{"vocab_size": int(config.vocab_size), **others},
    )
    return Tokenized(spec=spec, data=data)


def place_of_picture(model: Any, tokenizer: bytes) -> int:
    """The id that stands for one embedding of a picture; written into the configuration where it lacks one.

    Checkpoints from before transformers 4.46 have none: pictures simply came first. Raises `CheckpointError` where the
    vocabulary has no row left for it.
    """
    if model.config.image_token_id is None:
        known = Tokenizer.from_str(tokenizer.decode("utf-8")).get_vocab(with_added_tokens=True)
        token, rows = known.get(IMAGE_TOKEN, max(known.values()) + 1), model.config.text_config.vocab_size
        if token >= rows:
            raise CheckpointError(
                f"The checkpoint's config.json has no image_token_index, and its vocabulary of {rows} tokens no row for one. "
                "Use a revision of the checkpoint from December 2024 or later."
            )
        model.config.image_token_id = token
    return int(model.config.image_token_id)


def language_cases(
    model: Any, image_embeds: Tensor, questions: Sequence[Sequence[int]], samples: Samples
) -> Iterator[Case]:
    """What the eager language model gives for pictures (batch, slots, text) and a question's ids a row, of any lengths."""
    pad = int(model.config.text_config.pad_token_id or 0)
    if flow(model) == "encoder_decoder":
        ids, mask = padded(questions, pad=pad)
        yield from t5_plans.t5_cases(model.language_model, image_embeds, ids, mask, samples)
        return
    token = int(model.config.image_token_id)
    rows = [[token] * image_embeds.shape[1] + [each for each in row if each != token] for row in questions]
    ids, mask = padded(rows, pad=pad, left=True)
    yield from decoder_cases(
        lambda given: model.language_model(**given),
        model.get_input_embeddings(),
        make_prompt(ids, mask, image_embeds, token),
        samples,
    )


def generate(loaded: Loaded, prepared: Prepared, ids: Sequence[int], **more: Tensor) -> Tensor:
    """What the eager model answers to a prompt with its picture in front; `more` are further inputs. Generated ids alone."""
    token = int(loaded.model.config.image_token_id)
    row = [token] * queries_of(loaded.model) + [each for each in ids if each != token]
    prompt = torch.tensor([row])
    return _generated(loaded, prepared, len(row), input_ids=prompt, attention_mask=torch.ones_like(prompt), **more)


def describe(loaded: Loaded, prepared: Prepared) -> Tensor:
    """What the eager model says of a picture where it is given no prompt: it makes one of the picture and one token."""
    return _generated(loaded, prepared, queries_of(loaded.model) + 1)


def _generated(loaded: Loaded, prepared: Prepared, prompt: int, **inputs: Tensor) -> Tensor:
    """Generated ids without what comes first: `prompt` tokens, or an encoder-decoder's start token."""
    found = greedy(loaded.model, pixel_values=torch.from_numpy(prepared.inputs["pixel_values"]), **inputs)
    return found[:, prompt if flow(loaded.model) == "decoder_only" else 1 :]


def padded(rows: Sequence[Sequence[int]], *, pad: int, left: bool = False) -> tuple[Tensor, Tensor]:
    """Ids and mask, int64 (rows, longest)."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        place = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[number, place], mask[number, place] = torch.tensor(list(row)), 1
    return ids, mask


def random_ids(vocab_size: int, lengths: Sequence[int], *, never: int = -1) -> list[list[int]]:
    """Rows of random ids of these lengths, without the special ones at the beginning and without `never`."""
    rows = [torch.randint(3, vocab_size, (length,)).tolist() for length in lengths]
    return [[3 if token == never else token for token in row] for row in rows]


def _max_context(model: Any) -> int | None:
    text = model.config.text_config
    if text.model_type == "llama":
        return llama_context(text)
    return int(text.max_position_embeddings) if text.model_type == "opt" else None
