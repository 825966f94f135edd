"""How models that match texts to pictures are asked the questions of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from PIL import Image

from edgevqa.evaluation.answers import options_for, scored_samples
from edgevqa.evaluation.datasets.base import Sample
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.manifest import MatchingSpec
from tests.runtime.pipelines.matching_toy import write_matching
from tests.runtime.pipelines.wordless_toys import write_classifier

SOFTMAX = MatchingSpec(scale=4, bias=0, activation="softmax")
SIGMOID = MatchingSpec(scale=4, bias=0, activation="sigmoid")
ENCODERS: dict[str, dict[str, Any]] = {"image_encoder": {}, "text_encoder": {}}


def sample(question: str, *answers: str) -> Sample:
    return Sample(
        question=question,
        answers=list(answers),
        question_type="all",
        image_id="a",
        question_id="0",
        open_image=lambda: Image.new("RGB", (4, 4)),
    )


LABELLED = [sample("", "dog"), sample("", "cat"), sample("", "Dog")]
ASKED = [sample("a red ball", "yes"), sample("two dogs", "no"), sample("a  Red ball", "no")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "toy"


def test_labels_are_the_choices_where_there_are_pictures_alone(folder: Path) -> None:
    for matching in (SOFTMAX, SIGMOID):
        manifest = Bundle.open(write_matching(folder / matching.activation, ENCODERS, matching)).manifest
        assert options_for(manifest, LABELLED) == {"choices": ["Dog", "cat"]}
        assert options_for(manifest, [sample("")]) == {}


def test_what_would_answer_a_cosine_chooses_from_the_texts(folder: Path) -> None:
    manifest = Bundle.open(write_matching(folder, ENCODERS, SOFTMAX)).manifest
    assert options_for(manifest, ASKED) == {"choices": ["a  Red ball", "two dogs"]}
    many = [sample(f"text {number}") for number in range(500)]
    assert len(options_for(manifest, many).get("choices") or ()) == 64


def test_what_answers_yes_or_no_is_asked_as_it_is(folder: Path) -> None:
    assert options_for(Bundle.open(write_matching(folder / "a", ENCODERS, SIGMOID)).manifest, ASKED) == {}
    both = write_matching(folder / "b", {"vision": {}, "matcher": {}}, None)
    assert options_for(Bundle.open(both).manifest, ASKED) == {}
    assert options_for(Bundle.open(write_classifier(folder / "c")).manifest, LABELLED) == {}


def answers(samples: list[Sample]) -> list[list[str]]:
    return [each.answers for each in samples]


def test_answers_that_could_never_be_given_are_not_scored(folder: Path) -> None:
    manifest = Bundle.open(write_matching(folder, ENCODERS, SOFTMAX)).manifest
    assert answers(scored_samples(manifest, ASKED)) == [[], [], []]
    assert answers(scored_samples(manifest, LABELLED)) == answers(LABELLED)
    captions = [sample("a red ball", "a red ball"), sample("two dogs", "two dogs")]
    assert answers(scored_samples(manifest, captions)) == answers(captions)


def test_what_gives_arrays_is_not_scored(folder: Path) -> None:
    manifest = Bundle.open(write_classifier(folder)).manifest
    assert answers(scored_samples(manifest, LABELLED)) == answers(LABELLED)
    assert answers(scored_samples(msgspec.structs.replace(manifest, pipeline="features"), LABELLED)) == [[], [], []]
