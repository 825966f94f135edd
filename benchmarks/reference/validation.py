"""Quick accuracy while training: a fixed few hundred questions a source, by type."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from tokenizers import Tokenizer

from benchmarks.reference.batches import Asked, Batch, encode
from benchmarks.reference.pictures import Picture
from benchmarks.reference.pixels import to_pixel_values
from benchmarks.reference.recipe import VALIDATION_PICTURES
from edgevqa.evaluation.datasets.base import Sample
from edgevqa.evaluation.datasets.registry import open_dataset
from edgevqa.models.qavit import QAViTForVQA

QUESTIONS_PER_SET = 480
Scores = dict[str, dict[str, float]]  # set -> question type (or "all") -> percent


@dataclass(frozen=True, kw_only=True)
class ValidationSet:
    """One encoded batch and the type of each of its questions."""

    name: str
    batch: Batch
    types: list[str]


def validation_sets(tokenizer: Tokenizer, scenes_seed: int) -> list[ValidationSet]:
    """Return the held-out pictures of easy-vqa's training split, and scenes of a seed that training does not use."""
    held_out = [s for s in open_dataset("easy-vqa:train") if int(s.image_id) >= 4000 - VALIDATION_PICTURES]
    scenes = open_dataset(f"scenes:{scenes_seed}:{QUESTIONS_PER_SET}")
    every = len(held_out) // QUESTIONS_PER_SET
    samples = {"easy-vqa": list(islice(held_out, 0, None, every)), "scenes": list(scenes)}
    return [_encode(name, some, tokenizer) for name, some in samples.items()]


@torch.no_grad()
def validate(model: QAViTForVQA, sets: list[ValidationSet]) -> Scores:
    """Return the percentage of answers with every token right; leaves the model in training mode."""
    model.eval()
    scores: Scores = {}
    for part in sets:
        right = _right(model, part.batch)
        by_type: dict[str, list[bool]] = defaultdict(list)
        for kind, hit in zip(part.types, right, strict=True):
            by_type[kind].append(hit)
            by_type["all"].append(hit)
        scores[part.name] = {kind: round(100 * float(np.mean(hits)), 2) for kind, hits in sorted(by_type.items())}
    model.train()
    return scores


def _right(model: QAViTForVQA, batch: Batch) -> list[bool]:
    # every argmax right under teacher forcing is the same as the greedy answer right
    pixels = to_pixel_values(torch.from_numpy(batch.pictures))
    labels = torch.from_numpy(batch.labels)
    ids, mask = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(pixels, ids, mask, labels=labels, image_index=torch.from_numpy(batch.image_index)).logits
    hits = (logits.argmax(-1) == labels) | (labels == -100)
    return [bool(hit) for hit in hits.all(-1)]


def _encode(name: str, samples: list[Sample], tokenizer: Tokenizer) -> ValidationSet:
    places: dict[str, int] = {}
    pictures: list[Picture] = []
    asked: list[Asked] = []
    for sample in samples:
        if sample.image_id not in places:
            places[sample.image_id] = len(pictures)
            pictures.append(np.asarray(sample.image))
        asked.append((places[sample.image_id], sample.question, sample.answers[0]))
    return ValidationSet(name=name, batch=encode(tokenizer, pictures, asked), types=[s.question_type for s in samples])
