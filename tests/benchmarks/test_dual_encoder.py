"""A dual encoder that was really trained, for seconds: what is exported ranks as it learned to, far above chance."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edgevqa.evaluation.datasets.registry import open_dataset
from edgevqa.export import ExportOptions, export

if TYPE_CHECKING:
    from benchmarks.matching.captions import Captioned

ROOT = Path(__file__).parents[2]
CHANCE = 100 / 24
WELL_ABOVE = 6 * CHANCE


@pytest.fixture(autouse=True, scope="module")
def benchmarks_can_be_imported() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        yield


def halved(data: Captioned) -> Captioned:
    """Every other pixel, so that a picture's sides are half as long."""
    from benchmarks.matching.captions import Captioned

    return Captioned(pictures=data.pictures[:, ::2, ::2], captions=data.captions)


def test_captions_follow_from_the_questions() -> None:
    from benchmarks.matching.captions import CAPTIONS, read_captioned

    data = read_captioned(open_dataset("easy-vqa:train")[index] for index in range(120))
    assert [CAPTIONS[caption] for caption in data.captions[:2]] == ["a blue rectangle", "a blue triangle"]
    assert data.pictures.shape[1:] == (64, 64, 3)
    assert len(CAPTIONS) == 24


def test_exported_heads_rank_the_right_caption_first(tmp_path: Path) -> None:
    from benchmarks.matching.captions import caption_tokenizer, read_captioned
    from benchmarks.matching.ranking import rank_bundle
    from benchmarks.matching.training import Training, make_model, save, scores, train

    samples = open_dataset("easy-vqa:train")
    seen = halved(read_captioned(samples, most=1000))
    asked = halved(read_captioned(open_dataset("easy-vqa:test"), most=60))
    tokenizer = caption_tokenizer(samples[index] for index in range(500))
    align = Training(steps=350, rate=5e-3, size=32, width=32, layers=1)
    fuse = Training(steps=120, batch=8, rate=5e-3, size=32, width=32, layers=1)
    aligned = make_model("coordinated", align, vocab_size=len(tokenizer))
    train(aligned, seen, tokenizer, align)
    mixed = make_model("multi_query", fuse, vocab_size=len(tokenizer))
    train(mixed, seen, tokenizer, fuse, aligned=aligned)
    for model in (aligned, mixed):
        name = model.config.fusion.mechanism
        expected = scores(model, asked.pictures, tokenizer).argmax(axis=1)
        save(model, tokenizer, tmp_path / name)
        bundle = tmp_path / f"{name}.bundle"
        export(str(tmp_path / name), bundle, ExportOptions(verify=False))
        found = rank_bundle(bundle, "fp32", asked, expected)
        assert found.as_eager == 100, name
        assert found.accuracy > WELL_ABOVE, name
