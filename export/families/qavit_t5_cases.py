"""What eager PyTorch gives for every graph of a QA-ViT with T5, on random inputs and on real pictures and questions."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from edgevqa.export.samples import arrays, questions_by_picture, random_pixels, random_questions
from edgevqa.export.spec import AnswerCase, Array, Case, Loaded, Samples
from edgevqa.models.qavit import QAViTForVQA
from edgevqa.runtime.preprocessing.fixed import preprocess
from edgevqa.runtime.text import QuestionTokenizer, pad

ANSWER = 10  # tokens of a compared answer: enough to tell, and bearable with a real T5
STEPS = 6  # decoder positions in the cached-decoding check; the last one is compared
EXTRA_SLOTS = 3  # unused cache slots, filled with large values that must not be seen


@torch.no_grad()
def cases(loaded: Loaded) -> Iterator[Case]:
    """Every graph fed with what the eager graph before it gives, for random and real inputs."""
    model: QAViTForVQA = loaded.model
    vision = model.config.vision_config
    torch.manual_seed(0)
    pixels = random_pixels(1, height=vision.image_size, width=vision.image_size, channels=vision.num_channels)
    words = min(9, model.config.max_question_tokens)
    yield from _chain(
        model, pixels, *random_questions(3, words, vocab_size=model.config.text_config.vocab_size), "random"
    )
    for picture, questions in questions_by_picture()[:2]:
        ids, mask = _tokenize(loaded, questions)
        yield from _chain(model, _pixels(loaded, picture), ids, mask, "real")


@torch.no_grad()
def answer_cases(loaded: Loaded) -> list[AnswerCase]:
    """The eager answer of every packaged question, each asked alone."""
    model: QAViTForVQA = loaded.model
    tokenizer, found = _tokenizer(loaded), []
    for picture, questions in questions_by_picture():
        trunk = model.vision.trunk(_pixels(loaded, picture))
        for question in questions:
            ids, mask = _tokenize(loaded, [question])
            states = model.ask_trunk(trunk, ids, mask, question_mask=mask)
            generated = model.generate_from(states, ids, mask, do_sample=False, num_beams=1, max_new_tokens=ANSWER)[0]
            expected = tokenizer.decode(generated.tolist())
            found.append(AnswerCase(image=picture, question=question, expected=expected, max_new_tokens=ANSWER))
    return found


def _chain(model: QAViTForVQA, pixels: Tensor, ids: Tensor, mask: Tensor, samples: Samples) -> Iterator[Case]:
    def case(graph: str, inputs: dict[str, Tensor], expected: dict[str, Tensor]) -> Case:
        return Case(graph=graph, samples=samples, inputs=arrays(inputs), expected=arrays(expected))

    trunk = model.vision.trunk(pixels)
    yield case("vision_trunk", {"pixel_values": pixels}, {"trunk_states": trunk})
    states = trunk.expand(len(ids), -1, -1)
    if model.config.fused:
        question = model.encode_question(ids, mask)
        yield case("question_encoder", {"input_ids": ids, "attention_mask": mask}, {"question_states": question})
        states = model.vision.fuse(states, question, mask)
        fusion_inputs = {"trunk_states": trunk, "question_states": question, "attention_mask": mask}
        yield case("vision_fusion", fusion_inputs, {"image_states": states})
    embeds = model.projector(states)
    yield case("projector", {"image_states": states}, {"image_embeds": embeds})
    hidden, joined_mask = model.encode(states, ids, mask)
    cross = _cross(model, hidden)
    yield case(
        "language_encoder",
        {"image_embeds": embeds, "input_ids": ids, "attention_mask": mask},
        {"encoder_hidden_states": hidden, "encoder_attention_mask": joined_mask, **cross},
    )
    yield case("language_decoder", *_decoder_step(model, hidden, joined_mask, cross))


def _cross(model: QAViTForVQA, hidden: Tensor) -> dict[str, Tensor]:
    heads, found = model.config.text_config.num_heads, {}
    for i, block in enumerate(model.language_model.decoder.block):
        attention = block.layer[1].EncDecAttention
        for part, project in (("key", attention.k), ("value", attention.v)):
            found[f"cross_{part}.{i}"] = project(hidden).unflatten(-1, (heads, -1)).transpose(1, 2)
    return found


def _decoder_step(
    model: QAViTForVQA, hidden: Tensor, mask: Tensor, cross: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Feed STEPS tokens to the eager decoder at once; the graph gets all but the last through its cache."""
    ids = torch.randint(2, model.config.text_config.vocab_size, (len(hidden), STEPS))
    ids[:, 0] = model.config.text_config.decoder_start_token_id
    cache: Any = EncoderDecoderCache(DynamicCache(), DynamicCache())
    decoded: Any = model.language_model(
        encoder_outputs=(hidden,), attention_mask=mask, decoder_input_ids=ids, past_key_values=cache, use_cache=True
    )
    inputs: dict[str, Tensor] = {"decoder_input_ids": ids[:, -1:], "cache_length": torch.tensor([STEPS - 1])}
    expected: dict[str, Tensor] = {"logits": decoded.logits[:, -1]}
    for i, layer in enumerate(cache.self_attention_cache.layers):
        for part, states in (("key", layer.keys), ("value", layer.values)):
            unused = torch.full_like(states[:, :, :EXTRA_SLOTS], 50.0)
            inputs[f"past_{part}.{i}"] = torch.cat([states[:, :, :-1], unused], dim=2)
            expected[f"new_{part}.{i}"] = states[:, :, -1:]
    return {**inputs, **cross, "encoder_attention_mask": mask}, expected


def _tokenizer(loaded: Loaded) -> QuestionTokenizer:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "tokenizer.json")
        path.write_bytes(loaded.required_text.data)
        return QuestionTokenizer(path, loaded.required_text.spec)


def _tokenize(loaded: Loaded, questions: list[str]) -> tuple[Tensor, Tensor]:
    tokenizer = _tokenizer(loaded)
    ids, mask = pad([tokenizer.question(question) for question in questions], loaded.required_text.spec.pad_token_id)
    return torch.from_numpy(ids), torch.from_numpy(mask)


def _pixels(loaded: Loaded, picture: Array) -> Tensor:
    return torch.from_numpy(preprocess(picture, loaded.required_image))
