"""A process that exports one subject with transformers.exporters: python -m benchmarks.exporters.transformers_worker ...

Arguments: the subject, its folder, where the graphs go, and what: `whole` or `generation`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers.exporters import exporter_onnx

from benchmarks.exporters.subjects import SUBJECTS

SAMPLE = (2, 7)  # batch and words that are traced with, the second row padded


def main() -> None:
    """Export; an error goes to stderr, its last line first of all."""
    name, folder, output, what = sys.argv[1:]
    subject = next(each for each in SUBJECTS if each.name == name)
    torch.manual_seed(0)
    model = subject.load(folder)
    inputs = subject.inputs(model, *SAMPLE)
    exporters: Any = exporter_onnx
    exporter, config = exporters.OnnxExporter(), exporters.OnnxConfig(dynamic=True)
    with torch.no_grad():
        if what == "whole":
            exporter.export(model, inputs, config=config).save_pretrained(output)
            return
        found = exporter.export_for_generation(model, inputs, config=config, multi_token_decode=True)
    found.save_pretrained(output)
    print(sorted(str(file) for file in Path(output).rglob("*.onnx")))


if __name__ == "__main__":
    main()
