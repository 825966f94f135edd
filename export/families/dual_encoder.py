"""Dual encoders of our own (`models/dual_encoder`) for image-text matching, with any fusion mechanism.

Coordinated ones become `image_encoder` and `text_encoder`. All others become `vision`, which runs once a picture, and
`matcher`, which reads a text together with what `vision` made of the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from edgevqa.export import assets
from edgevqa.export.answers import open_tokenizer
from edgevqa.export.pretrained import source_spec
from edgevqa.export.processors import fixed_image_spec
from edgevqa.export.samples import arrays, questions_by_picture, random_pixels, random_questions
from edgevqa.export.sources import Source
from edgevqa.export.spec import AnswerCase, Case, GraphPlan, Loaded, Plans, Samples, Tokenized
from edgevqa.export.weight_files import check_tensors
from edgevqa.models.dual_encoder import DualEncoder, Matched
from edgevqa.models.dual_encoder.model import WEIGHTS_NAME
from edgevqa.runtime.manifest import MatchingSpec
from edgevqa.runtime.preprocessing import prepare
from edgevqa.runtime.text import QuestionTokenizer, pad_ids

BATCH, WORDS = 2, 5  # sizes to trace with; both axes are dynamic
Q_AXES = {0: "batch", 1: "words"}
CHOICES = ("a red circle", "what color is the triangle?", "is there a blue shape?", "what is the ball on the left?")


class DualEncoders:
    """The family `dual_encoder`."""

    tolerance = 1e-4

    def load(self, source: Source) -> Loaded:
        check_tensors(source.path / WEIGHTS_NAME)
        model = DualEncoder.from_pretrained(source.path)
        return Loaded(
            model=model,
            task="image-text-matching",
            pipeline="matching",
            source=source_spec(source, model),
            model_info=msgspec.to_builtins(model.config),
            image=fixed_image_spec(source.path, size=model.config.image_size),
            text=_text(source.path, model),
            matching=_matching(model),
        )

    def plans(self, loaded: Loaded) -> Plans:
        plans = _COORDINATED if loaded.model.config.coordinated else _MIXED
        return {name: partial(plan, loaded.model) for name, plan in plans.items()}

    @torch.no_grad()
    def cases(self, loaded: Loaded) -> Iterator[Case]:
        torch.manual_seed(0)
        model, size = loaded.model, loaded.model.config.image_size
        tokenizer = open_tokenizer(loaded.required_text)
        yield from _cases(model, random_pixels(3, height=size, width=size), _texts(model, 3), "random")
        for rgb, questions in questions_by_picture():
            yield from _cases(model, _pixels(loaded, rgb), _ids(loaded, tokenizer, questions), "real")

    @torch.no_grad()
    def answer_cases(self, loaded: Loaded) -> list[AnswerCase]:
        """Every picture's likeliest of `CHOICES`, and what the model says to its questions."""
        tokenizer = open_tokenizer(loaded.required_text)
        found: list[AnswerCase] = []
        for rgb, questions in questions_by_picture():
            pixels = _pixels(loaded, rgb)
            best = int(_scores(loaded.model(pixels, *_ids(loaded, tokenizer, CHOICES))).argmax())
            found.append(AnswerCase(image=rgb, question=questions[0], expected=CHOICES[best], choices=CHOICES))
            for question in questions[:2]:
                said = _verdict(loaded.model(pixels, *_ids(loaded, tokenizer, [question])))
                found.append(AnswerCase(image=rgb, question=question, expected=said))
        return found


class ImageEncoder(nn.Module):
    """`pixel_values` (image, 3, height, width) to `image_embeds` (image, width), each of length 1."""

    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.vision, self.fusion = model.vision, model.coordinated

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.fusion.embed_image(self.vision(pixel_values))


class TextEncoder(nn.Module):
    """`input_ids` and `attention_mask` (batch, words) to `text_embeds` (batch, width), each of length 1."""

    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.text, self.fusion = model.text, model.coordinated

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.fusion.embed_text(self.text(input_ids, attention_mask), attention_mask)


class Vision(nn.Module):
    """`pixel_values` (image, 3, height, width) to `image_states` (image, tokens, width)."""

    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.vision, self.fusion = model.vision, model.mixing

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.fusion.project_image(self.vision(pixel_values))


class Matcher(nn.Module):
    """`image_states` (1 or batch, tokens, width) and a text (batch, words) to `match_logits` (batch, 2): no and yes."""

    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, image_states: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model.match(image_states, input_ids, attention_mask)


def _text(folder: Path, model: DualEncoder) -> Tokenized:
    data, text = assets.tokenizer_bytes(folder), model.text.model.config
    around = Tokenizer.from_str(data.decode("utf-8")).encode("").ids  # BERT's: [CLS] and [SEP]
    spec = assets.text_spec(
        data,
        cleaning="none",
        max_tokens=model.config.max_text_tokens,
        pad_token_id=text.pad_token_id,
        eos_token_id=around[-1] if around else None,
        vocab_size=text.vocab_size,
        required=False,  # choices need no question
    )
    return Tokenized(data=data, spec=spec)


def _matching(model: DualEncoder) -> MatchingSpec | None:
    if not model.config.coordinated:
        return None
    return MatchingSpec(scale=float(model.coordinated.scale()), bias=0.0, activation="softmax")


def _image_encoder_plan(model: DualEncoder) -> GraphPlan:
    return _picture_plan(model, "image_encoder", ImageEncoder(model), "image_embeds")


def _vision_plan(model: DualEncoder) -> GraphPlan:
    return _picture_plan(model, "vision", Vision(model), "image_states")


def _picture_plan(model: DualEncoder, name: str, module: nn.Module, output: str) -> GraphPlan:
    size = model.config.image_size
    return GraphPlan(
        name=name,
        module=module,
        args=(random_pixels(BATCH, height=size, width=size),),
        dynamic_shapes=({0: "image"},),
        input_names=["pixel_values"],
        output_names=[output],
    )


def _text_encoder_plan(model: DualEncoder) -> GraphPlan:
    return GraphPlan(
        name="text_encoder",
        module=TextEncoder(model),
        args=_texts(model, BATCH, WORDS),
        dynamic_shapes=(Q_AXES, Q_AXES),
        input_names=["input_ids", "attention_mask"],
        output_names=["text_embeds"],
    )


def _matcher_plan(model: DualEncoder) -> GraphPlan:
    size = model.config.image_size
    with torch.no_grad():
        states = model.image_states(random_pixels(1, height=size, width=size))
    return GraphPlan(
        name="matcher",
        module=Matcher(model),
        args=(states, *_texts(model, BATCH, WORDS)),
        dynamic_shapes=(None, Q_AXES, Q_AXES),
        input_names=["image_states", "input_ids", "attention_mask"],
        output_names=["match_logits"],
        free_axes={"image_states": {0: "image"}},
    )


def _texts(model: DualEncoder, batch: int, words: int = WORDS + 2) -> tuple[Tensor, Tensor]:
    return random_questions(batch, words, vocab_size=model.text.model.config.vocab_size)


def _cases(model: DualEncoder, pixels: Tensor, texts: tuple[Tensor, Tensor], samples: Samples) -> Iterator[Case]:
    """Every graph on some pictures and texts, with what the whole eager model gives."""
    found = model(pixels, *texts)
    given = {"pixel_values": pixels, "input_ids": texts[0], "attention_mask": texts[1]}
    if found.image_states is not None:
        given["image_states"] = found.image_states
    for graph, (inputs, output) in _TENSORS.items():
        if (value := getattr(found, output)) is not None:
            taken = arrays({name: given[name] for name in inputs})
            yield Case(graph=graph, samples=samples, inputs=taken, expected=arrays({output: value}))


def _ids(loaded: Loaded, tokenizer: QuestionTokenizer, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask of texts, as the runtime makes them."""
    pad = loaded.required_text.spec.pad_token_id
    ids, mask = pad_ids([tokenizer.question(text).ids for text in texts], pad)
    return torch.from_numpy(ids), torch.from_numpy(mask)


def _pixels(loaded: Loaded, rgb: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(prepare(rgb, loaded.required_image).inputs["pixel_values"])


def _scores(found: Matched) -> Tensor:
    """How well each text fits the one picture, (texts,)."""
    logits: Any = found.match_logits
    if logits is not None:
        odds: Tensor = logits[:, 1] - logits[:, 0]
        return odds
    similarity: Any = found.similarity
    scores: Tensor = similarity[0]
    return scores


def _verdict(found: Matched) -> str:
    """What is said of a single text: yes or no, or of a coordinated model the cosine."""
    if found.image_embeds is None or found.text_embeds is None:
        return "yes" if float(_scores(found)[0]) >= 0 else "no"
    return f"{float(found.image_embeds[0] @ found.text_embeds[0]):.2f}"


_COORDINATED: dict[str, Callable[[DualEncoder], GraphPlan]] = {
    "image_encoder": _image_encoder_plan,
    "text_encoder": _text_encoder_plan,
}
_MIXED: dict[str, Callable[[DualEncoder], GraphPlan]] = {"vision": _vision_plan, "matcher": _matcher_plan}
_TENSORS = {
    "image_encoder": (("pixel_values",), "image_embeds"),
    "text_encoder": (("input_ids", "attention_mask"), "text_embeds"),
    "vision": (("pixel_values",), "image_states"),
    "matcher": (("image_states", "input_ids", "attention_mask"), "match_logits"),
}
