"""Exporting as a whole: what the manifest says, what is compared, and that nothing half-made is left."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from edgevqa.export import ExportOptions, export
from edgevqa.export.components.vision import folded_out_proj
from edgevqa.export.options import MAX_OPSET
from edgevqa.export.sources import resolve_source
from edgevqa.export.trtexec import reads_language, trtexec_lines
from edgevqa.export.verify import cosine, max_abs_difference
from edgevqa.models.qavit.model import QAViTForVQA
from edgevqa.models.qavit.official import load_official
from edgevqa.models.qavit.vision import VisionAttention
from edgevqa.runtime import Pipeline
from edgevqa.runtime.errors import CheckFailed, CheckpointError, EdgeVQAError, InputError, NetworkError

Write = Callable[..., Path]


def options_for(folder: Path, **changes: object) -> ExportOptions:
    return ExportOptions(config=folder / "config.yaml", root=folder, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "flavour",
    [
        {"flan": False, "lora": False},
        {"integration_point": "early", "dtype": torch.bfloat16},
        {"integration_point": "none"},
    ],
    ids=["tied-relu", "early-bfloat16", "without-fusion"],
)
def test_export_compares_itself_with_pytorch(official: Write, tmp_path: Path, flavour: dict[str, object]) -> None:
    folder = official(**flavour)
    exported = export(str(folder / "ckpt.pth"), tmp_path / "bundle", options_for(folder))
    parity = exported.bundle.manifest.parity["fp32"]
    graphs = set(exported.bundle.manifest.variants["fp32"].graphs)
    assert {(row.graph, row.samples) for row in parity.rows} == {(g, s) for g in graphs for s in ("random", "real")}
    assert all(row.passed and row.max_abs_diff <= row.tolerance < 2e-4 for row in parity.rows)
    assert any(row.max_abs_diff > 0 for row in parity.rows)  # it compared numbers, not the same array twice
    assert parity.answers_identical == parity.answers_compared > 10
    assert ("vision_fusion" in graphs) == (flavour.get("integration_point") != "none")


def test_a_graph_that_differs_is_not_published(
    official: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forget the gate's tanh, as one may: the comparison must see it and nothing may be left."""
    from edgevqa.export.components import vision

    def without_tanh(attention: VisionAttention) -> torch.nn.Linear:
        folded = torch.nn.Linear(1, 1)
        gate = attention.question_gate * 1.5
        folded.weight = torch.nn.Parameter(attention.out_proj.weight + gate * attention.question_out_proj.weight)
        folded.bias = torch.nn.Parameter(attention.out_proj.bias + gate * attention.question_out_proj.bias)
        return folded

    monkeypatch.setattr(vision, "folded_out_proj", without_tanh)
    folder = official()
    with pytest.raises(CheckFailed, match="vision_fusion"):
        export(str(folder / "ckpt.pth"), tmp_path / "bundle", options_for(folder))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["official"]


def test_folding_weights_and_biases_is_exact(official: Write) -> None:
    folder = official()
    model = load_official(folder / "ckpt.pth", folder / "config.yaml", root=folder).model
    attention: VisionAttention = model.vision.layers[-1].self_attn
    states = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0))
    gate = torch.tanh(attention.question_gate)
    expected = attention.out_proj(states) + attention.question_out_proj(states) * gate
    assert float(attention.question_out_proj.bias.abs().max()) > 0
    assert torch.allclose(folded_out_proj(attention)(states), expected, atol=1e-6)


def test_own_folder_and_official_checkpoint_give_the_same_answers(official: Write, tmp_path: Path) -> None:
    folder = official()
    model = load_official(folder / "ckpt.pth", folder / "config.yaml", root=folder).model
    own = tmp_path / "own"
    model.save_pretrained(own)
    for name, part in (("tokenizer.json", "t5"), ("preprocessor_config.json", "clip")):
        (own / name).write_bytes((folder / "pretrained" / part / name).read_bytes())
    export(str(own), tmp_path / "a", ExportOptions())
    export(str(folder / "ckpt.pth"), tmp_path / "b", options_for(folder, verify=False))
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    with Pipeline.load(tmp_path / "a") as a, Pipeline.load(tmp_path / "b") as b:
        question = "what is this thing called?"
        assert a.answer(picture, question).tokens == b.answer(picture, question).tokens
        assert a.manifest.source.kind == "folder"
        assert b.manifest.source.kind == "official"
    weights = [(tmp_path / name / "graphs" / "fp32" / "weights.data").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


def test_the_manifest_tells_where_the_model_came_from(golden_bundle: Callable[[str], Path], golden_root: Path) -> None:
    manifest = json.loads((golden_bundle("late") / "manifest.json").read_bytes())
    assert manifest["family"] == "qavit_t5"
    assert manifest["source"]["kind"] == "official"
    assert manifest["source"]["id"] == "ckpt.pth"
    assert manifest["model"]["fused_layers"] == [4, 5, 6, 7]
    assert manifest["model"]["trunk_layers"] == 4
    assert manifest["tools"]["torch"] == torch.__version__
    assert str(golden_root) not in json.dumps(manifest)  # no path of the exporting machine
    tokenizer = golden_root / "pretrained" / "t5-tiny" / "tokenizer.json"
    assert (golden_bundle("late") / "tokenizer.json").read_bytes() == tokenizer.read_bytes()


def test_the_legacy_target_gets_opset_17_that_agrees(official: Write, tmp_path: Path) -> None:
    """TensorRT 8.6 reads opset 17 and IR 8; parity is checked by the export itself, validity by onnx."""
    folder = official()
    options = options_for(folder, target="jetson-orin-legacy")
    exported = export(str(folder / "ckpt.pth"), tmp_path / "bundle", options)
    assert exported.parity is not None
    assert exported.parity.answers_identical == exported.parity.answers_compared
    lines = list(trtexec_lines(exported.bundle))
    for (name, graph), line in zip(exported.bundle.manifest.variants["fp32"].graphs.items(), lines, strict=True):
        assert (graph.opset, graph.ir_version) == (17, 8)
        model = onnx.load(exported.bundle.graph_path("fp32", name), load_external_data=False)
        assert all("axes" in {a.name for a in n.attribute} for n in model.graph.node if n.op_type == "ReduceMean")
        onnx.checker.check_model(str(exported.bundle.graph_path("fp32", name)), full_check=True)
        assert line.startswith(f"trtexec --onnx={graph.file.path} --saveEngine={name}.engine")
        assert (" --fp16 " in line) is not reads_language(name, graph), "T5's feed-forward layers overflow in FP16"
    halved = [line.split("--saveEngine=")[1].split(".")[0] for line in lines if " --fp16 " in line]
    assert halved == ["vision_trunk", "vision_fusion", "projector"]
    assert "--maxShapes=decoder_input_ids:8x1" in lines[-1]


@pytest.mark.parametrize("opset", [18, MAX_OPSET])
def test_other_opsets_export_and_agree(official: Write, tmp_path: Path, opset: int) -> None:
    folder = official()
    exported = export(str(folder / "ckpt.pth"), tmp_path / "bundle", options_for(folder, opset=opset))
    assert {graph.opset for graph in exported.bundle.manifest.variants["fp32"].graphs.values()} == {opset}
    assert exported.parity is not None


def test_interrupting_leaves_nothing(official: Write, tmp_path: Path) -> None:
    folder = official()

    def interrupt(what: str, done: int, total: int) -> None:
        if what == "trace language_encoder":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(str(folder / "ckpt.pth"), tmp_path / "bundle", options_for(folder), report=interrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["official"]


def test_a_checkpoint_that_changes_meanwhile_is_noticed(official: Write, tmp_path: Path) -> None:
    folder = official()

    def touch(what: str, done: int, total: int) -> None:
        if what == "trace projector":
            with (folder / "ckpt.pth").open("ab") as file:
                file.write(b" ")

    with pytest.raises(CheckpointError, match="changed while"):
        export(str(folder / "ckpt.pth"), tmp_path / "bundle", options_for(folder, verify=False), report=touch)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"precision": "int8"}, "fp32"),
        ({"opset": 12}, "18"),
        ({"target": "jetson-nano"}, "jetson-orin-jp6"),
        ({"target": "jetson-orin-jp6", "opset": 23}, "18 to 20"),
    ],
)
def test_impossible_options_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ExportOptions(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "kind", "said"),
    [
        ("nothing.pth", CheckpointError, "does not exist"),
        ("./nothing", InputError, "does not exist"),
        ("README.txt", InputError, "is a file"),
        ("empty", CheckpointError, "config.json"),
        ("foreign", InputError, "model_type 'bert'.*qavit_t5.*CONTRIBUTING"),
        ("no-such-owner/no-such-model", NetworkError, "no-such-owner/no-such-model"),
    ],
)
def test_sources_that_are_none(tmp_path: Path, source: str, kind: type[EdgeVQAError], said: str) -> None:
    (tmp_path / "README.txt").write_text("no model")
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text('{"model_type": "bert"}')
    path = tmp_path / source
    name = str(path) if path.exists() or source == "nothing.pth" else source
    with pytest.raises(kind, match=said):
        resolve_source(name, config=None, root=tmp_path)


def test_an_official_checkpoint_needs_its_yaml(official: Write) -> None:
    folder = official()
    with pytest.raises(InputError, match="--config"):
        resolve_source(str(folder / "ckpt.pth"), config=None, root=folder)
    with pytest.raises(InputError, match="--config"):
        resolve_source(str(folder), config=folder / "config.yaml", root=folder)


def test_measures_see_what_is_wrong() -> None:
    ones, nan = np.ones(3, np.float32), np.array([1, np.nan, 1], np.float32)
    assert max_abs_difference(ones, ones) == 0
    assert max_abs_difference(ones, nan) == float("inf")
    assert max_abs_difference(ones, np.ones(4, np.float32)) == float("inf")
    assert cosine(ones, -ones) == pytest.approx(-1)
    assert cosine(np.zeros(3), np.zeros(3)) == 1


def test_a_reference_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        QAViTForVQA.from_pretrained(tmp_path)
