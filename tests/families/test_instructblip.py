"""The family `instructblip`, on small random models with each of its language models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer, InstructBlipConfig, InstructBlipForConditionalGeneration, InstructBlipProcessor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from edgevqa.export.samples import PICTURES
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.pipeline import Pipeline
from edgevqa.runtime.questions import Questions
from tests.families.contract import QUESTION, FamilyContract
from tests.families.tiny.query_models import (
    QUERIES,
    processed,
    qformer_values,
    save_image_processor,
    shake,
    text_values,
    token_ids,
    vision_values,
)
from tests.families.tiny.tokenizers import bert_tokenizer, llama_tokenizer, t5_tokenizer

QUESTIONS = [QUESTION, "how many dogs are there?", "what is it?"]
IMAGES = [PICTURES / name for name in sorted(file.name for file in PICTURES.glob("*.png"))[:2]]


class InstructBlipContract(FamilyContract):
    """What both language models share."""

    family = "instructblip"
    head: ClassVar[str]
    place: ClassVar[list[str]]
    """What stands for the picture in the runtime's ids."""

    @classmethod
    def make(cls, folder: Path) -> None:
        tokenizer = {"llama": llama_tokenizer, "t5": t5_tokenizer}[cls.head](special=["<image>"])
        reader = bert_tokenizer()
        config = InstructBlipConfig(
            vision_config=vision_values(),
            qformer_config=qformer_values(len(reader)),
            text_config={"model_type": cls.head, **text_values(tokenizer)[cls.head]},
            num_query_tokens=QUERIES,
            image_token_index=tokenizer.get_vocab()["<image>"],
        )
        model = InstructBlipForConditionalGeneration(config)
        shake(model, matrices=0.2 if cls.head == "t5" else 0.4)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        reader.save_pretrained(folder / "qformer_tokenizer")
        save_image_processor(folder)

    @classmethod
    def processed(cls, folder: Path, rgb: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
        return processed(folder, rgb)

    @classmethod
    def processor(cls, folder: Path) -> InstructBlipProcessor:
        return InstructBlipProcessor(
            BlipImageProcessorPil.from_pretrained(folder),
            AutoTokenizer.from_pretrained(folder),
            AutoTokenizer.from_pretrained(folder / "qformer_tokenizer"),
            num_query_tokens=QUERIES,
        )

    @classmethod
    def prompt_ids(cls, folder: Path, question: str) -> list[int] | None:
        processor = cls.processor(folder)
        blank = np.zeros((8, 8, 3), dtype=np.uint8)
        ids: list[int] = processor(images=blank, text=question)["input_ids"][0]
        assert set(ids[:QUERIES]) == set(token_ids(processor.tokenizer, ["<image>"]))
        return token_ids(processor.tokenizer, cls.place) + ids[QUERIES:]

    def test_the_qformer_reads_the_question_with_its_own_tokenizer(self, folder: Path, bundle_path: Path) -> None:
        found = Questions.of(Bundle.open(bundle_path)).question(QUESTION).others["qformer"]
        assert list(found) == self.processor(folder)(text=QUESTION)["qformer_input_ids"][0]

    def test_a_batch_answers_as_each_alone_and_sees_a_picture_once(self, bundle_path: Path) -> None:
        pairs = [(image, question) for image in IMAGES for question in QUESTIONS]
        with Pipeline.load(bundle_path) as pipeline:
            together = pipeline.answer_pairs(pairs, max_new_tokens=12)
            assert pipeline.statistics.runs["vision"] == pipeline.statistics.runs["qformer"] == 1
            pipeline.clear_caches()
            alone = [pipeline.answer(*pair, max_new_tokens=12).tokens for pair in pairs]
            assert pipeline.statistics.runs["vision"] == 1 + len(IMAGES)
            assert pipeline.statistics.runs["qformer"] == 1 + len(pairs), "the queries depend on the question"
        assert [answer.tokens for answer in together] == alone
        assert len(set(alone)) > 1


class TestInstructBlipVicuna(InstructBlipContract):
    head = "llama"
    graphs = frozenset({"vision", "qformer", "language_decoder"})
    place: ClassVar[list[str]] = ["<image>"]


class TestInstructBlipT5(InstructBlipContract):
    head = "t5"
    graphs = frozenset({"vision", "qformer", "language_encoder", "language_decoder"})
    quantized = False
    place: ClassVar[list[str]] = []
