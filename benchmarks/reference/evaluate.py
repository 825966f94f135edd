"""Measures the reference model: `python -m benchmarks.reference.evaluate [--model FOLDER] [--output JSON]`.

Exact match of greedy, generated answers in eager PyTorch on easy-vqa's test split and on held-out scenes, by question
type; and the same with the question hidden from the vision layers.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from benchmarks.reference.pixels import to_pixel_values
from benchmarks.reference.recipe import TEST_SCENES_SEED
from edgevqa.evaluation.datasets.base import Dataset, Sample
from edgevqa.evaluation.datasets.registry import open_dataset
from edgevqa.models.qavit import QAViTForVQA
from edgevqa.runtime.machine import describe_machine

ROOT = Path(__file__).parents[2]
TEST_SETS = ("easy-vqa:test", f"scenes:{TEST_SCENES_SEED}:5000")
BATCH_QUESTIONS = 64
log = logging.getLogger("evaluate_reference")


def exact_match(
    model: QAViTForVQA, tokenizer: Tokenizer, dataset: Dataset, *, fusion: bool = True, limit: int | None = None
) -> dict[str, Any]:
    """Return accuracy in percent over all questions (or the first `limit`) and by type, their number and the seconds.

    Without `fusion` the fused vision layers cannot attend to the question; the language model still reads it.
    """
    started = time.monotonic()
    hits: dict[str, list[bool]] = defaultdict(list)
    for samples in _batches(islice(dataset, limit)):
        for sample, answer in zip(samples, _answers(model, tokenizer, samples, fusion), strict=True):
            hits[sample.question_type].append(answer in sample.answers)
    every = [hit for some in hits.values() for hit in some]
    return {
        "n": len(every),
        "accuracy": _percent(every),
        "by_type": {kind: {"n": len(some), "accuracy": _percent(some)} for kind, some in sorted(hits.items())},
        "seconds": round(time.monotonic() - started, 1),
    }


def _answers(model: QAViTForVQA, tokenizer: Tokenizer, samples: list[Sample], fusion: bool) -> list[str]:
    encoded = [encoding.ids for encoding in tokenizer.encode_batch([sample.question for sample in samples])]
    width = max(map(len, encoded))
    input_ids = torch.tensor([ids + [0] * (width - len(ids)) for ids in encoded])
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in encoded])
    generated = model.generate(
        _pixel_values(samples),
        input_ids,
        mask,
        question_mask=mask if fusion else torch.zeros_like(mask),
        do_sample=False,
    )
    texts: list[str] = tokenizer.decode_batch(generated.tolist(), skip_special_tokens=True)
    return texts


def _pixel_values(samples: list[Sample]) -> Tensor:
    return to_pixel_values(torch.from_numpy(np.stack([np.asarray(sample.image) for sample in samples])))


def _batches(samples: Iterator[Sample]) -> Iterator[list[Sample]]:
    while batch := list(islice(samples, BATCH_QUESTIONS)):
        yield batch


def _parameters(model: QAViTForVQA) -> int:
    """Count each parameter once, also where modules share it."""
    return sum({tensor.data_ptr(): tensor.numel() for tensor in model.parameters()}.values())


def _percent(hits: list[bool]) -> float:
    return round(100 * sum(hits) / len(hits), 3)


def measure(folder: Path, limit: int | None) -> dict[str, Any]:
    """Return the whole report of a model folder: machine, model, and results with and without fusion."""
    model = QAViTForVQA.from_pretrained(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    results: dict[str, Any] = {}
    for spec in TEST_SETS:
        dataset = open_dataset(spec)
        results[spec] = {
            name: exact_match(model, tokenizer, dataset, fusion=fusion, limit=limit)
            for name, fusion in (("fusion", True), ("fusion_off", False))
        }
        log.info("%s: %s", spec, json.dumps(results[spec]))
    return {
        "what": "exact match in percent of greedy generated answers, eager PyTorch float32",
        "fusion_off": "the same weights with the question masked out of the fused vision layers' keys; the "
        "language model still reads the question; not retrained",
        "parameters": _parameters(model),
        "checkpoint_bytes": (folder / "model.safetensors").stat().st_size,
        "machine": {**describe_machine(), "torch": str(torch.__version__), "threads": torch.get_num_threads()},
        "results": results,
    }


def main() -> None:
    """Parse the command line, measure, and write the JSON report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "reference")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "reference_model.json")
    parser.add_argument("--limit", type=int, default=None, help="first so many questions of each set: a quick look")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    report = measure(arguments.model, arguments.limit)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
