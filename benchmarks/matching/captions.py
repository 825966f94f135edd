"""Captions of easy-vqa's pictures, made from what its questions and answers say of shape and colour."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from edgevqa.evaluation.datasets.base import Sample

SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
CAPTIONS = [f"a {color} {shape}" for color in COLORS for shape in SHAPES]
"""What there is to choose from: every colour with every shape."""
LONGER = ("{}", "there is {} in the image", "{} on a white background", "the picture shows {}")
"""In training a caption also stands in sentences of other lengths, so that batches have padding."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """Pictures (pictures, height, width, 3) uint8, and of each the index of its caption in `CAPTIONS`."""

    pictures: NDArray[np.uint8]
    captions: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.captions)


def read_captioned(samples: Iterable[Sample], *, most: int | None = None) -> Captioned:
    """The pictures whose shape and colour both follow from their questions; the first `most` of them."""
    known: dict[str, dict[str, str]] = {}
    pictures: dict[str, Sample] = {}
    for sample in samples:
        if sample.question_type == "yes/no":
            continue
        words = f"{sample.question} {sample.answers[0]}".replace("?", "").split()
        found = known.setdefault(sample.image_id, {})
        for kind, names in (("shape", SHAPES), ("color", COLORS)):
            found.update((kind, word) for word in words if word in names)
        pictures.setdefault(sample.image_id, sample)
    named = {name: f"a {each['color']} {each['shape']}" for name, each in known.items() if len(each) == 2}
    chosen = list(named.items())[:most]
    return Captioned(
        pictures=np.stack([np.asarray(pictures[name].image, dtype=np.uint8) for name, _ in chosen]),
        captions=np.array([CAPTIONS.index(caption) for _, caption in chosen]),
    )


def caption_tokenizer(samples: Iterable[Sample]) -> PreTrainedTokenizerFast:
    """BERT's kind of tokenizer with the words of the captions and questions, and letters to spell others with."""
    texts = [*CAPTIONS, *LONGER, *{sample.question for sample in samples}]
    words = sorted({word for text in texts for word in text.replace("?", " ").replace("{}", "").split()})
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = dict.fromkeys([*SPECIAL, "?", *words, *letters, *(f"##{letter}" for letter in letters)])
    numbered = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(numbered, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, numbered[name]) for name in ("[CLS]", "[SEP]")],
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names)
