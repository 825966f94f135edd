"""The walk of CONTRIBUTING.md through adding a family works as it is printed; and the registry, tests and docs agree."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from edgevqa.export import export
from edgevqa.export.families import FAMILIES, FamilyEntry
from edgevqa.runtime.errors import InputError
from edgevqa.runtime.pipeline import Pipeline
from tests.families.contract import picture

ROOT = Path(__file__).resolve().parents[2]
MOST_LINES = 100


@pytest.fixture(scope="module")
def walk() -> str:
    """The file that CONTRIBUTING.md shows."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split("## A new model family")[1].split("\n## ")[0]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found.group(1)


def test_the_file_of_the_walk_is_short(walk: str) -> None:
    assert len(walk.splitlines()) <= MOST_LINES


def test_the_walk_gives_a_family(walk: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import DeiTConfig, DeiTForImageClassification
    from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil

    module = ModuleType("edgevqa_walk_deit")
    exec(compile(walk, "CONTRIBUTING.md", "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    entry = FamilyEntry(f"{module.__name__}:DeiT", "DeiT: image classification", ("deit",), "ICML 2021")
    folder = tmp_path / "checkpoint"
    torch.manual_seed(0)
    config = DeiTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        id2label={0: "cat", 1: "dog", 2: "ball"},
        label2id={"cat": 0, "dog": 1, "ball": 2},
    )
    DeiTForImageClassification(config).save_pretrained(folder)
    size = {"height": 36, "width": 36}
    DeiTImageProcessorPil(size=size, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    with pytest.raises(InputError, match=r"model_type 'deit', which no family exports.*CONTRIBUTING\.md"):
        export(str(folder), tmp_path / "before.bundle")
    monkeypatch.setitem(FAMILIES, "deit", entry)
    exported = export(str(folder), tmp_path / "deit.bundle")
    assert exported.parity is not None
    assert exported.parity.answers_identical == exported.parity.answers_compared > 0
    with Pipeline.load(exported.bundle.root) as pipeline:
        assert pipeline.answer(picture(50, 70), "").text in ("cat", "dog", "ball")


def test_every_family_passes_the_contract() -> None:
    """A class of `tests/families` declares each name of the registry."""
    declared: set[str] = {"qavit_t5"}  # the first family: tests/export and tests/models hold more than the contract
    for file in sorted(Path(__file__).parent.glob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                for line in node.body:
                    if isinstance(line, ast.Assign) and isinstance(line.value, ast.Constant):
                        names = [target.id for target in line.targets if isinstance(target, ast.Name)]
                        declared |= {str(line.value.value)} if "family" in names else set()
    assert declared == set(FAMILIES)


def test_every_family_has_a_row_in_the_docs() -> None:
    table = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert rows == set(FAMILIES)
