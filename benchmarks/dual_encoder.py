"""Does an exported fusion head rank right? Small dual encoders, trained on captions of easy-vqa, eager and as bundles.

    python -m benchmarks.dual_encoder SCRATCH [--fusions coordinated joint ...] [--pictures 300]

Captions ("a red circle") are made from what easy-vqa's questions and answers say of a picture's shape and colour. First a
coordinated model is trained; every other mechanism takes over its towers, and its own part is trained on top. Each is
then exported, calibrated and quantised, and ranks all 24 captions for every test picture: in eager PyTorch, in float32
and in INT8 on ONNX Runtime. Bars: an exported float32 head puts the same caption first as eager PyTorch for every
picture; INT8 loses at most 1 point. Exit code 1: a bar fails. Writes benchmarks/results/dual_encoder.json.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from benchmarks.matching.captions import CAPTIONS, Captioned, caption_tokenizer, read_captioned
from benchmarks.matching.ranking import Ranked, rank_bundle
from benchmarks.matching.training import Training, make_model, save, scores, train
from edgevqa.calibration import CalibrateOptions, QuantizeOptions, calibrate, quantize
from edgevqa.evaluation.datasets.registry import open_dataset
from edgevqa.export import ExportOptions, export
from edgevqa.models.dual_encoder import DualEncoder
from edgevqa.models.fusion import COORDINATED, FUSIONS
from edgevqa.runtime.machine import describe_machine

RESULT = Path(__file__).parent / "results" / "dual_encoder.json"
ALIGN, FUSE = Training(steps=700), Training(steps=300, batch=8)
CALIBRATED_WITH = 64
MOST_LOST = 1.0  # points of accuracy that INT8 may cost
INT8 = "int8-u8-fp32"


class Row(msgspec.Struct, kw_only=True):
    """One mechanism: how it was trained, and how it ranks. `accuracy` is the share of right captions first, percent."""

    fusion: str
    parameters: int
    trained_steps: int
    trained_s: float
    loss: float
    eager_accuracy: float
    worst_difference: float
    ranked: dict[str, Ranked]
    size_mb: dict[str, float]


def main() -> None:
    """Train, export, rank, print, write."""
    arguments = _arguments()
    torch.set_num_threads(1)
    scratch: Path = arguments.scratch
    scratch.mkdir(parents=True, exist_ok=True)
    training, test = open_dataset("easy-vqa:train"), open_dataset("easy-vqa:test")
    seen, asked = read_captioned(training), read_captioned(test, most=arguments.pictures)
    tokenizer = caption_tokenizer(training)
    data = write_calibration(scratch / "calibration", seen)
    aligned, made = _trained(COORDINATED, seen, tokenizer, None)
    rows: list[Row] = []
    for name in arguments.fusions:
        model, told = (aligned, made) if name == COORDINATED else _trained(name, seen, tokenizer, aligned)
        rows.append(measure(model, tokenizer, asked, data, scratch / name, told))
        print(line_of(rows[-1]), flush=True)
    failed = [text for row in rows for text in missed(row)]
    written = {
        "machine": describe_machine(),
        "load_average": os.getloadavg(),
        "data": {"train": len(seen), "test": len(asked), "captions": len(CAPTIONS), "chance": 100 / len(CAPTIONS)},
        "model": "ResNet and BERT of 64 features, trained on one thread",
        "bars": {"float32": "the same caption first as eager PyTorch", "int8_points_lost": MOST_LOST},
        "rows": rows,
        "failed": failed,
    }
    arguments.output.write_bytes(msgspec.json.format(msgspec.json.encode(written), indent=2) + b"\n")
    print("\n".join(failed) if failed else "all bars hold")
    sys.exit(1 if failed else 0)


def measure(
    model: DualEncoder,
    tokenizer: PreTrainedTokenizerFast,
    asked: Captioned,
    data: Path,
    folder: Path,
    told: dict[str, Any],
) -> Row:
    """Export a trained model, quantise it, and let everything rank the captions of `asked`."""
    shutil.rmtree(folder, ignore_errors=True)
    save(model, tokenizer, folder / "checkpoint")
    bundle = folder / "model.bundle"
    exported = export(str(folder / "checkpoint"), bundle, ExportOptions())
    calibrate(bundle, CalibrateOptions(data=str(data), samples=CALIBRATED_WITH))
    made = quantize(bundle, QuantizeOptions(precision="int8", targets=("cpu",)))
    expected = scores(model, asked.pictures, tokenizer).argmax(axis=1)
    parity = exported.parity
    return Row(
        fusion=model.config.fusion.mechanism,
        parameters=sum(value.numel() for value in model.parameters()),
        eager_accuracy=100 * float((expected == asked.captions).mean()),
        worst_difference=max(row.max_abs_diff for row in parity.rows) if parity else float("nan"),
        ranked={name: rank_bundle(bundle, name, asked, expected) for name in ("fp32", INT8)},
        size_mb={
            "fp32": round(made.float_size_bytes / 1e6, 2),
            **{variant.name: round(variant.size_bytes / 1e6, 2) for variant in made.variants},
        },
        **told,
    )


def write_calibration(folder: Path, seen: Captioned) -> Path:
    """A folder of training pictures, each with a right and a wrong caption as questions."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines: list[bytes] = []
    for number in range(CALIBRATED_WITH):
        name = f"{number}.png"
        Image.fromarray(seen.pictures[number]).save(folder / name)
        for caption in (int(seen.captions[number]), int(rng.integers(len(CAPTIONS)))):
            lines.append(msgspec.json.encode({"image": name, "question": CAPTIONS[caption], "answer": ""}))
    folder.joinpath("questions.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return folder


def missed(row: Row) -> list[str]:
    """The bars that a mechanism does not hold."""
    failed: list[str] = []
    if row.ranked["fp32"].as_eager < 100:
        failed.append(f"{row.fusion}: float32 puts another caption first than eager PyTorch")
    lost = row.eager_accuracy - row.ranked[INT8].accuracy
    if lost > MOST_LOST:
        failed.append(f"{row.fusion}: INT8 loses {lost:.1f} points, over {MOST_LOST}")
    return failed


def line_of(row: Row) -> str:
    """A mechanism's figures, for people."""
    ranks = ", ".join(f"{name} {each.accuracy:.1f} %" for name, each in row.ranked.items())
    return (
        f"{row.fusion:24} eager {row.eager_accuracy:.1f} %, {ranks}, worst difference {row.worst_difference:.1e}, "
        f"trained {row.trained_s:.0f} s"
    )


def _trained(
    name: str, seen: Captioned, tokenizer: PreTrainedTokenizerFast, aligned: DualEncoder | None
) -> tuple[DualEncoder, dict[str, Any]]:
    training = ALIGN if aligned is None else FUSE
    model = make_model(name, training, vocab_size=len(tokenizer))
    started = time.perf_counter()
    loss = train(model, seen, tokenizer, training, aligned=aligned)
    seconds = time.perf_counter() - started
    return model, {"trained_steps": training.steps, "trained_s": round(seconds, 1), "loss": round(loss, 4)}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--fusions", nargs="+", choices=FUSIONS, default=list(FUSIONS))
    parser.add_argument("--pictures", type=int, default=300, help="of the test split")
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    return parser.parse_args()


if __name__ == "__main__":
    main()
