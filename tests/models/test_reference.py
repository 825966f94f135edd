"""The packaged reference model: it loads, it is small, its files agree, and it answers as its card says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

import edgevqa.models.reference
from edgevqa.evaluation.datasets.base import Sample
from edgevqa.evaluation.datasets.registry import open_dataset
from edgevqa.models.qavit import QAViTForVQA

FOLDER = Path(edgevqa.models.reference.__file__).parent
MAX_BYTES = 12_000_000
EVERY = 47  # takes 206 of easy-vqa's test questions, spread over the split


@pytest.fixture(scope="module")
def model() -> QAViTForVQA:
    return QAViTForVQA.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    loaded: Tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    return loaded


def pixel_values(samples: list[Sample]) -> torch.Tensor:
    """As `preprocessor_config.json` says; the pictures have the model's size already."""
    processor = json.loads((FOLDER / "preprocessor_config.json").read_text(encoding="utf-8"))
    mean, std = np.array(processor["image_mean"]), np.array(processor["image_std"])
    pictures = np.stack([np.asarray(sample.image) for sample in samples])
    values = (pictures * processor["rescale_factor"] - mean) / std  # (batch, height, width, channel)
    return torch.from_numpy(values.transpose(0, 3, 1, 2).astype(np.float32))


def accuracy(model: QAViTForVQA, tokenizer: Tokenizer, samples: list[Sample], *, fusion: bool = True) -> float:
    """Percentage of greedy answers that match exactly."""
    encodings = [tokenizer.encode(sample.question).ids for sample in samples]
    width = max(map(len, encodings))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in encodings])
    mask = (ids != 0).long()
    question_mask = mask if fusion else torch.zeros_like(mask)
    generated = model.generate(pixel_values(samples), ids, mask, question_mask=question_mask, do_sample=False)
    answers = tokenizer.decode_batch(generated.tolist(), skip_special_tokens=True)
    hits = [answer in sample.answers for answer, sample in zip(answers, samples, strict=True)]
    return 100 * sum(hits) / len(hits)


def test_size_and_configuration(model: QAViTForVQA) -> None:
    parameters = sum({tensor.data_ptr(): tensor.numel() for tensor in model.parameters()}.values())
    assert 2_200_000 <= parameters <= 2_950_000
    assert (FOLDER / "model.safetensors").stat().st_size <= MAX_BYTES
    assert model.config.integration_point == "late"
    assert model.config.fused == (3, 4, 5)
    assert model.config.trunk_layers == 3


def test_the_question_enters_the_vision_layers(model: QAViTForVQA) -> None:
    gates = [float(layer.self_attn.question_gate) for layer in model.vision.layers[3:]]
    assert max(map(abs, gates)) > 1e-2, "the gates are still closed"


def test_tokenizer_is_t5_like(model: QAViTForVQA, tokenizer: Tokenizer) -> None:
    assert [tokenizer.id_to_token(i) for i in range(3)] == ["<pad>", "</s>", "<unk>"]
    assert tokenizer.get_vocab_size() == model.config.text_config.vocab_size
    assert tokenizer.encode("Is there  a RED circle?").ids == tokenizer.encode("is there a red circle?").ids
    assert tokenizer.encode("red").tokens == ["▁red", "</s>"]
    for text in ("is there a red circle?", "what is to the left of the zebra?", "élan 漢字 🙂"):
        ids = tokenizer.encode(text).ids
        assert ids[-1] == 1
        assert 2 not in ids, "byte fallback leaves no unknown token"
        assert tokenizer.decode(ids) == text


def test_it_answers_easy_vqa(model: QAViTForVQA, tokenizer: Tokenizer) -> None:
    pytest.importorskip("easy_vqa")
    dataset = open_dataset("easy-vqa:test")
    samples = [dataset[index] for index in range(0, len(dataset), EVERY)]
    assert len(samples) >= 200
    assert accuracy(model, tokenizer, samples) >= 98.5


def test_it_answers_scenes_and_needs_the_fusion(model: QAViTForVQA, tokenizer: Tokenizer) -> None:
    samples = list(open_dataset("scenes:7:200"))
    with_fusion = accuracy(model, tokenizer, samples)
    assert with_fusion >= 92
    assert accuracy(model, tokenizer, samples, fusion=False) < with_fusion - 20


def test_the_card_names_what_it_must() -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for word in ("easy-vqa", "scenes:7:5000", "seed", "minutes", "fusion off", "exact match"):
        assert word in card.lower(), f"the card does not speak of '{word}'"
