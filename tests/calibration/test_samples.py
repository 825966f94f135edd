from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from edgevqa.calibration.observation.picture_checks import look_of
from edgevqa.calibration.observation.samples import CalibrationSet, dataset_name, pick_samples
from edgevqa.evaluation.datasets.base import Dataset, Sample
from edgevqa.evaluation.datasets.registry import open_dataset
from edgevqa.runtime.errors import ConfigError, ImageError, InputError, QuestionError

PICTURES = Path(__file__).parents[2] / "export" / "pictures"
Opener = Callable[[], Image.Image]


class Listed:
    """A data set of samples in a list."""

    spec = "listed"

    def __init__(self, samples: list[Sample]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index]

    def __iter__(self) -> Iterator[Sample]:
        return iter(self._samples)


def sample(number: int, open_image: Opener, *, question: str = "", image: str = "", kind: str = "all") -> Sample:
    return Sample(
        question=question or f"question {number}?",
        answers=[],
        question_type=kind,
        image_id=image or str(number),
        question_id=f"q{number}",
        open_image=open_image,
    )


def disc(seed: int) -> Image.Image:
    """A disc on plain ground."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", (64, 64), tuple(rng.integers(180, 255, 3).tolist()))
    left, top = rng.integers(5, 30, 2).tolist()
    ImageDraw.Draw(picture).ellipse((left, top, left + 25, top + 20), fill=tuple(rng.integers(0, 120, 3).tolist()))
    return picture


def noise(seed: int, size: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def page(seed: int) -> Image.Image:
    """A page full of text."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", (300, 400), "white")
    for y in range(4, 400, 16):
        words = ["".join(chr(97 + int(c)) for c in rng.integers(0, 26, rng.integers(2, 9))) for _ in range(20)]
        ImageDraw.Draw(picture).text((4, y), " ".join(words), fill="black", font=ImageFont.load_default(12))
    return picture


def grainy(seed: int) -> Image.Image:
    """A disc photographed in the dark."""
    clean = np.asarray(disc(seed).resize((224, 224)), dtype=np.float64)
    grain = np.random.default_rng(seed).normal(0, 40, clean.shape)
    return Image.fromarray(np.clip(clean + grain, 0, 255).astype(np.uint8))


def of_pictures(make: Callable[[int], Image.Image], count: int) -> Dataset:
    return Listed([sample(number, lambda number=number: make(number)) for number in range(count)])  # type: ignore[misc]


def identities(chosen: CalibrationSet) -> list[tuple[str, str]]:
    return [(found.question, found.image_id) for found in chosen.samples]


def test_samples_are_distinct_seeded_and_as_many_as_asked_for() -> None:
    dataset = open_dataset("scenes:3:2000")
    first, again, other = (pick_samples(dataset, 200, seed) for seed in (0, 0, 1))
    assert len(set(identities(first))) == len(first.samples) == 200
    assert identities(first) == identities(again)
    assert first.sha256 == again.sha256
    assert set(identities(first)) != set(identities(other))
    assert first.sha256 != other.sha256
    assert first.question_ids == [found.question_id for found in first.samples]
    assert not first.warnings


def test_the_hash_is_that_of_questions_and_pictures_not_of_names() -> None:
    def named(prefix: str, words: str) -> Dataset:
        return Listed([sample(n, lambda n=n: disc(n), question=words, image=f"{prefix}{n}") for n in range(5)])  # type: ignore[misc]

    assert pick_samples(named("a", "what?"), 5, 0).sha256 == pick_samples(named("b", "what?"), 5, 0).sha256
    assert pick_samples(named("a", "what?"), 5, 0).sha256 != pick_samples(named("a", "who?"), 5, 0).sha256


def test_samples_spread_over_pictures_and_kinds_of_question() -> None:
    dataset = open_dataset("scenes:3:4000")
    chosen = pick_samples(dataset, 180, 0)
    kinds = Counter(found.question_type for found in chosen.samples)
    assert len(kinds) == 9
    assert max(kinds.values()) == min(kinds.values()) == 20
    assert len(chosen.groups) == 180
    few = pick_samples(open_dataset("scenes:3:160"), 160, 0)  # 40 pictures: each is used four times, one after another
    assert [len(group) for group in few.groups] == [4] * 40
    assert all(len({found.image_id for found in group}) == 1 for group in few.groups)


def test_equal_samples_are_taken_once_and_the_lack_is_told() -> None:
    """Two names of the same picture are one picture."""
    samples = [sample(n, lambda n=n: disc(n % 10), question="what is it?", image=f"copy{n}") for n in range(40)]  # type: ignore[misc]
    chosen = pick_samples(Listed(samples), 30, 0)
    assert len(chosen.samples) == len(chosen.groups) == 10
    assert any("only 10 distinct samples; 30" in warning for warning in chosen.warnings)
    assert any("same question" in warning for warning in chosen.warnings)


def test_few_samples_are_warned_of() -> None:
    dataset = open_dataset("scenes:3:400")
    assert any("127 samples are few" in warning for warning in pick_samples(dataset, 127, 0).warnings)
    assert not pick_samples(dataset, 128, 0).warnings


def test_no_picture_is_kept_in_memory() -> None:
    opened: list[weakref.ref[Image.Image]] = []

    def make(number: int) -> Image.Image:
        picture = disc(number)
        opened.append(weakref.ref(picture))
        return picture

    chosen = pick_samples(of_pictures(make, 50), 50, 0)
    assert len(chosen.samples) == len(opened) == 50
    assert not any(reference() for reference in opened)


def test_what_cannot_be_used_is_passed_over() -> None:
    def broken() -> Image.Image:
        raise ImageError("picture 7 is truncated")

    def check(question: str) -> None:
        if question == "?!":
            raise QuestionError("nothing is left of the question")

    good = [sample(n, lambda n=n: disc(n)) for n in range(20)]  # type: ignore[misc]
    bad = [sample(20, broken), sample(21, lambda: disc(21), question="?!")]
    chosen = pick_samples(Listed(good + bad), 22, 0, check_question=check)
    assert {found.question_id for found in chosen.samples} == {found.question_id for found in good}
    warning = next(warning for warning in chosen.warnings if "passed over" in warning)
    assert warning.startswith("2 samples")
    with pytest.raises(InputError, match=r"no sample that can be used.*question q20: picture 7 is truncated"):
        pick_samples(Listed(bad[:1]), 5, 0)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (noise, "random noise"),
        (lambda n: noise(n, 28).resize((224, 224), Image.Resampling.NEAREST), "random noise"),
        (lambda n: noise(n, 56).resize((224, 224), Image.Resampling.BICUBIC), "random noise"),
        (lambda n: noise(n, 224).filter(ImageFilter.GaussianBlur(3)), "random noise"),
        (lambda n: Image.new("RGB", (64, 64), (n, 200 - n, 7)), "blank"),
        (lambda n: disc(0), "one and the same picture"),
    ],
    ids=["white noise", "scaled up", "scaled up smoothly", "blurred", "blank", "one picture"],
)
def test_random_and_constant_data_are_refused(make: Callable[[int], Image.Image], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        pick_samples(of_pictures(make, 40), 40, 0)
    assert "listed" in str(caught.value)
    assert "Calibrate with pictures like those" in str(caught.value)


def test_some_noise_among_pictures_is_told_not_refused() -> None:
    chosen = pick_samples(of_pictures(lambda n: noise(n) if n % 3 == 0 else disc(n), 30), 30, 0)
    assert "10 of 30 pictures look like random noise." in chosen.warnings
    with pytest.raises(InputError, match="20 of 30"):
        pick_samples(of_pictures(lambda n: disc(n) if n % 3 == 0 else noise(n), 30), 30, 0)


@pytest.mark.parametrize("make", [disc, page, grainy], ids=["drawings", "text", "grain"])
def test_unusual_pictures_are_pictures(make: Callable[[int], Image.Image]) -> None:
    assert [look_of(np.asarray(make(seed))) for seed in range(10)] == ["picture"] * 10


@pytest.mark.parametrize("spec", ["scenes:5:40", str(PICTURES)])
def test_our_own_data_sets_are_pictures(spec: str) -> None:
    assert {look_of(np.asarray(found.image)) for found in open_dataset(spec)} == {"picture"}


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (3, 2), (15, 400)])
def test_tiny_and_thin_pictures_are_looked_at(size: tuple[int, int]) -> None:
    random = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    assert look_of(random) in ("noise", "picture", "blank")
    assert look_of(np.zeros((*size, 3), dtype=np.uint8)) == "blank"


def test_a_bundle_names_no_path() -> None:
    assert dataset_name("easy-vqa:train") == "easy-vqa:train"
    assert dataset_name("scenes:3:256") == "scenes:3:256"
    assert dataset_name("/home/me/pictures") == "pictures"
    assert dataset_name("/data/q.json,/data/a.json::/data/val") == "q.json,a.json"


def test_the_number_of_samples_must_make_sense() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        pick_samples(open_dataset("scenes:3:40"), 0, 0)
