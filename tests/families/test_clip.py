"""The family `clip`, on small random models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from edgevqa.export import ExportOptions, export
from edgevqa.export.samples import questions_by_picture
from edgevqa.runtime.errors import CheckpointError
from edgevqa.runtime.pipeline import Pipeline
from tests.families.contract import FamilyContract
from tests.families.tiny.clip_models import save_clip

TEXTS = ["a red triangle", "two dogs on the left", "what color is the ball?", "is there a picture of a house in it?"]


def eager(folder: Path, rgb: NDArray[np.uint8], texts: list[str]) -> Any:
    """What transformers makes of a picture and texts, with its own processor's parts."""
    model = CLIPModel.from_pretrained(folder, attn_implementation="eager")
    words = CLIPTokenizer.from_pretrained(folder)(texts, padding=True, truncation=True, max_length=77)
    given = {name: torch.tensor(words[name]) for name in ("input_ids", "attention_mask")}
    pixels = torch.from_numpy(CLIPImageProcessorPil.from_pretrained(folder)(rgb, return_tensors="np")["pixel_values"])
    with torch.no_grad():
        return model.eval()(pixel_values=pixels, **given)


class TestClip(FamilyContract):
    family = "clip"
    graphs = frozenset({"image_encoder", "text_encoder"})
    answers = 12

    @classmethod
    def make(cls, folder: Path) -> None:
        save_clip(folder, legacy=False)

    @classmethod
    def processed(cls, folder: Path, rgb: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
        return {"pixel_values": CLIPImageProcessorPil.from_pretrained(folder)(rgb, return_tensors="np")["pixel_values"]}

    @classmethod
    def prompt_ids(cls, folder: Path, question: str) -> list[int] | None:
        ids: list[int] = CLIPTokenizer.from_pretrained(folder)(question)["input_ids"]
        return ids

    def test_choices_have_the_shares_that_transformers_gives_them(self, folder: Path, bundle_path: Path) -> None:
        winners: set[str] = set()
        with Pipeline.load(bundle_path) as pipeline:
            for rgb, _ in questions_by_picture():
                answer = pipeline.answer(rgb, "", choices=TEXTS)
                expected = eager(folder, rgb, TEXTS).logits_per_image.softmax(dim=1)[0]
                assert answer.scores is not None
                np.testing.assert_allclose(list(answer.scores.values()), expected.numpy(), atol=1e-5)
                assert answer.text == TEXTS[int(expected.argmax())]
                assert answer.confidence < 0.99
                winners.add(answer.text)
        assert len(winners) > 1

    def test_texts_longer_than_77_tokens_are_cut_as_by_transformers(self, folder: Path, bundle_path: Path) -> None:
        texts = ["a picture of " + " and ".join(["a red ball on the left"] * 20), "a ball"]
        rgb = questions_by_picture()[0][0]
        with Pipeline.load(bundle_path) as pipeline:
            found = pipeline.embed_texts(texts)
            assert pipeline.answer(rgb, texts[0]).truncated_question
        np.testing.assert_allclose(found, eager(folder, rgb, texts).text_embeds.numpy(), atol=1e-5)


class TestLegacyClip(TestClip):
    """A configuration that names token 2 as the end, as the first published ones do."""

    quantized = False

    @classmethod
    def make(cls, folder: Path) -> None:
        save_clip(folder, legacy=True)

    def test_the_end_is_the_highest_token(self, folder: Path, bundle_path: Path) -> None:
        assert json.loads((folder / "config.json").read_text())["text_config"]["eos_token_id"] == 2
        rgb = questions_by_picture()[1][0]
        with Pipeline.load(bundle_path) as pipeline:
            found = pipeline.embed_texts(TEXTS)
        np.testing.assert_allclose(found, eager(folder, rgb, TEXTS).text_embeds.numpy(), atol=1e-5)


def test_a_tokenizer_with_another_end_is_refused(tmp_path: Path) -> None:
    save_clip(tmp_path / "foreign", legacy=False)
    path = tmp_path / "foreign" / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["eos_token_id"] = 7
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="the model reads the state of token 7"):
        export(str(tmp_path / "foreign"), tmp_path / "bundle", ExportOptions())


def test_half_a_clip_is_refused(tmp_path: Path) -> None:
    save_clip(tmp_path / "half", legacy=False)
    path = tmp_path / "half" / "config.json"
    path.write_text(path.read_text().replace('"CLIPModel"', '"CLIPTextModel"'))
    with pytest.raises(CheckpointError, match=r"\['CLIPTextModel'\]; expected one of CLIPModel"):
        export(str(tmp_path / "half"), tmp_path / "bundle", ExportOptions())
