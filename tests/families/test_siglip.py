"""The family `siglip`, on a small random model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast, Siglip2Tokenizer, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from edgevqa.export import ExportOptions, export, sentencepiece_files
from edgevqa.export.answers import open_tokenizer
from edgevqa.export.families.siglip import Siglip
from edgevqa.export.samples import questions_by_picture
from edgevqa.export.sources import resolve_source
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import CheckpointError
from edgevqa.runtime.pipeline import Pipeline
from tests.families.contract import FamilyContract
from tests.families.tiny.clip_models import save_siglip, save_spiece, siglip_tokenizer
from tests.families.tiny.tokenizers import TEXTS as TRAINED

TEXTS = ["A red triangle!", "two dogs, on the left", "What color is the ball?", "a", "is there a house in it " * 20]


def eager(folder: Path, rgb: NDArray[np.uint8], texts: list[str], tokenizer: Any = None) -> Any:
    """What transformers makes of a picture and texts, each padded or cut to 64 tokens as in training."""
    model = SiglipModel.from_pretrained(folder, attn_implementation="eager")
    tokenizer = tokenizer or PreTrainedTokenizerFast.from_pretrained(folder)
    ids = tokenizer(texts, padding="max_length", truncation=True)["input_ids"]
    pixels = torch.from_numpy(SiglipImageProcessorPil.from_pretrained(folder)(rgb, return_tensors="np")["pixel_values"])
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor(ids), pixel_values=pixels)


class TestSiglip(FamilyContract):
    family = "siglip"
    graphs = frozenset({"image_encoder", "text_encoder"})
    answers = 12

    @classmethod
    def make(cls, folder: Path) -> None:
        save_siglip(folder)

    @classmethod
    def processed(cls, folder: Path, rgb: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
        processor = SiglipImageProcessorPil.from_pretrained(folder)
        return {"pixel_values": processor(rgb, return_tensors="np")["pixel_values"]}

    @classmethod
    def prompt_ids(cls, folder: Path, question: str) -> list[int] | None:
        ids: list[int] = PreTrainedTokenizerFast.from_pretrained(folder)(question)["input_ids"]
        return ids

    def test_every_text_has_a_probability_of_its_own(self, folder: Path, bundle_path: Path) -> None:
        verdicts: list[str] = []
        with Pipeline.load(bundle_path) as pipeline:
            for rgb, _ in questions_by_picture():
                expected = torch.sigmoid(eager(folder, rgb, TEXTS).logits_per_image)[0].numpy()
                ranked = pipeline.answer(rgb, "", choices=TEXTS)
                assert ranked.scores is not None
                np.testing.assert_allclose(list(ranked.scores.values()), expected, atol=1e-5)
                assert ranked.text == TEXTS[int(expected.argmax())].strip()
                alone = pipeline.answer(rgb, TEXTS)
                assert [answer.text for answer in alone] == ["yes" if yes > 0.5 else "no" for yes in expected]
                np.testing.assert_allclose(
                    [answer.scores["yes"] for answer in alone if answer.scores], expected, atol=1e-5
                )
                verdicts += [answer.text for answer in alone]
        assert set(verdicts) == {"yes", "no"}

    def test_texts_have_one_length(self, bundle_path: Path) -> None:
        graph = Bundle.open(bundle_path).manifest.variants["fp32"].graphs["text_encoder"]
        assert [(tensor.name, tensor.shape) for tensor in graph.inputs] == [("input_ids", ["batch", 64])]


def test_the_second_siglip_is_padded_and_closed_by_its_own_tokenizer(tmp_path: Path) -> None:
    save_siglip(tmp_path / "second", second=True)
    exported = export(str(tmp_path / "second"), tmp_path / "bundle", ExportOptions())
    text, tokenizer = exported.bundle.manifest.text, Siglip2Tokenizer.from_pretrained(tmp_path / "second")
    assert text is not None
    assert (text.pad_token_id, text.eos_token_id) == (0, 1)
    assert exported.parity is not None
    assert exported.parity.answers_identical == exported.parity.answers_compared >= 6
    rgb = questions_by_picture()[0][0]
    with Pipeline.load(tmp_path / "bundle") as pipeline:
        found = pipeline.embed_texts(TEXTS)
    np.testing.assert_allclose(found, eager(tmp_path / "second", rgb, TEXTS, tokenizer).text_embeds, atol=1e-5)


def test_a_folder_with_a_sentencepiece_model_alone(tmp_path: Path) -> None:
    save_siglip(tmp_path / "spiece")
    save_spiece(tmp_path / "spiece")
    source = resolve_source(str(tmp_path / "spiece"), config=None, root=tmp_path)
    found, tokenizer = open_tokenizer(Siglip().load(source).required_text), siglip_tokenizer()
    texts = [*TEXTS[:4], "  Don't   STOP\there!? ", "a_b-c/d"]
    assert [list(found.question(text).ids) for text in texts] == [tokenizer(text)["input_ids"] for text in texts]
    (tmp_path / "spiece" / "spiece.model").write_bytes(b"no model")
    with pytest.raises(CheckpointError, match=r"spiece\.model is not a"):
        export(str(tmp_path / "spiece"), tmp_path / "other", ExportOptions())


def test_sentencepiece_itself_cuts_texts_in_the_same_pieces(tmp_path: Path) -> None:
    sentencepiece: Any = pytest.importorskip("sentencepiece")
    from transformers import SiglipTokenizer

    with (tmp_path / "spiece.model").open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TRAINED),
            model_writer=model,
            vocab_size=90,
            hard_vocab_limit=False,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
    slow = SiglipTokenizer(vocab_file=str(tmp_path / "spiece.model"))
    fast = Tokenizer.from_str(sentencepiece_files.siglip_tokenizer(tmp_path).decode())
    texts = [
        *TRAINED,
        *TEXTS[:4],
        "  many   blanks\there\n",
        "\ufb01ne \uff46ull x\u00b2 \u2460",
        "\u00c4\u00d6 stra\u00dfe, \u65e5\u672c",
        "...",
    ]
    for text in texts:
        assert fast.encode(text).ids == slow(text)["input_ids"], text
