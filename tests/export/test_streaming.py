"""Big checkpoints: weights stay in their file, and what is exported is the same."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    ResNetConfig,
    ResNetForImageClassification,
)

from benchmarks.big_folder import write
from benchmarks.memory import watch
from edgevqa.export import ExportOptions, export, streaming
from edgevqa.export.case_files import kept_in_files
from edgevqa.export.pretrained import load_pretrained
from edgevqa.export.run import LEFT_OUT
from edgevqa.export.spec import Case
from edgevqa.export.streaming import StreamedTensor, placeholders
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import CheckpointError
from tests.families.test_llava import TestLlava as Llava

WEIGHTS = "model.safetensors"
RUN_MAPPED = """
import sys, numpy as np
from edgevqa.export.verify import session_options
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.sessions import open_session

bundle, sizes = Bundle.open(sys.argv[1], check=False), {"batch": 1, "length": 1, "slots": 1, "capacity": 2}
with open_session(
    bundle, "fp32", "language_decoder", backend="onnxruntime", options=session_options(bundle, "fp32")
) as session:
    inputs = {each.name: np.zeros([sizes.get(a, a) for a in each.shape], each.dtype) for each in session.inputs}
    print(list(session.run(inputs)["logits"].shape))
"""


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models and tensors of any size are streamed."""
    monkeypatch.setattr(streaming, "STREAMED_FROM_BYTES", 0)
    monkeypatch.setattr(streaming, "SMALL", 0)


def halve(folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Store the folder's weights in half precision."""
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streaming") / "checkpoint"
    folder.mkdir()
    Llava.make(folder)
    halve(folder)
    return folder


def streamed_parameters(module: nn.Module) -> Iterator[str]:
    return (name for name, value in module.named_parameters() if isinstance(value, StreamedTensor))


def test_a_streamed_export_is_the_loaded_one(llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file of the graphs, byte for byte; and the eager model, streamed too, agrees with them.

    As if it were big, it is asked one question, and the manifest says so.
    """
    export(str(llava), tmp_path / "loaded.bundle", ExportOptions(verify=False))
    monkeypatch.setattr(streaming, "STREAMED_FROM_BYTES", 0)
    monkeypatch.setattr(streaming, "BIG_FROM_BYTES", 0)
    monkeypatch.setattr(streaming, "SMALL", 100)  # vectors are loaded, matrices streamed
    found = export(str(llava), tmp_path / "streamed.bundle")
    files = sorted(file.relative_to(tmp_path / "loaded.bundle") for file in tmp_path.glob("loaded.bundle/graphs/*/*"))
    assert len(files) == 4
    for file in files:
        assert (tmp_path / "loaded.bundle" / file).read_bytes() == (tmp_path / "streamed.bundle" / file).read_bytes()
    assert found.parity is not None
    assert {row.graph for row in found.parity.rows} == Llava.graphs
    assert found.parity.answers_identical == found.parity.answers_compared == 1
    assert found.parity.left_out == [LEFT_OUT]
    assert not (tmp_path / "streamed.bundle" / "scratch").exists()


@pytest.mark.usefixtures("streams")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_streamed_model_computes_as_the_loaded_one(tmp_path: Path, dtype: torch.dtype) -> None:
    """A tied head too, and what the folder says about generating."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=90,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=True,
    )
    saved = LlamaForCausalLM(config)
    saved.generation_config.max_new_tokens = 11
    saved.save_pretrained(tmp_path)
    halve(tmp_path, dtype)
    model = load_pretrained(LlamaForCausalLM, tmp_path)
    expected = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager").eval()
    assert len(list(streamed_parameters(model))) == len(list(expected.parameters()))
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model.generation_config.to_dict() == expected.generation_config.to_dict()
    ids = torch.randint(0, 90, (2, 7))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, expected(ids).logits, rtol=0, atol=0)
    with placeholders(model) as streamed:
        assert {"lm_head.weight", "model.embed_tokens.weight"} <= set(streamed)
        assert model.lm_head.weight is model.get_input_embeddings().weight
        assert not list(streamed_parameters(model))
    assert len(list(streamed_parameters(model))) == len(list(expected.parameters()))


def test_small_and_float32_folders_are_simply_loaded(llava: Path, tmp_path: Path, streams: None) -> None:
    whole = shutil.copytree(llava, tmp_path / "whole")
    tensors = {name: tensor.float() for name, tensor in load_file(whole / WEIGHTS).items()}
    save_file(tensors, whole / WEIGHTS, metadata={"format": "pt"})
    assert streaming.streamed_state(whole) is None
    assert streaming.streamed_state(llava) is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "STREAMED_FROM_BYTES", 1 << 30)
        assert streaming.streamed_state(llava) is None


@pytest.mark.usefixtures("streams")
def test_missing_and_damaged_weights_are_named(llava: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llava, tmp_path / "folder")
    tensors = load_file(folder / WEIGHTS)
    name = next(name for name in tensors if name.endswith("q_proj.weight"))
    del tensors[name]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks weights of Llava.*q_proj\.weight"):
        load_pretrained(LlavaForConditionalGeneration, folder)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_pretrained(LlavaForConditionalGeneration, folder)
    (folder / WEIGHTS).unlink()
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(CheckpointError, match="which file holds which weight"):
        load_pretrained(LlavaForConditionalGeneration, folder)


def test_streamed_tensors_are_float32_to_all_who_read() -> None:
    stored = torch.randn(6, 4).to(torch.bfloat16)
    tensor = nn.Parameter(StreamedTensor(stored), requires_grad=False)
    floats = stored.float()
    assert isinstance(tensor, StreamedTensor)
    assert tensor.dtype == torch.float32
    assert tensor.to(torch.float32) is tensor
    detached = tensor.detach()
    assert isinstance(detached, StreamedTensor)
    assert detached.stored.data_ptr() == stored.data_ptr()
    for found, expected in (
        (tensor + 1, floats + 1),
        (torch.randn(3, 4, generator=torch.manual_seed(1)) @ tensor.T, None),
        (nn.functional.embedding(torch.tensor([5, 0]), tensor), floats[[5, 0]]),
        (tensor[2:, :1], floats[2:, :1]),
        (torch.stack([tensor, tensor]), torch.stack([floats, floats])),
    ):
        assert type(found) is torch.Tensor
        assert found.dtype == torch.float32
        assert expected is None or torch.equal(found, expected)


def test_cases_wait_on_the_disk(tmp_path: Path) -> None:
    large, small = np.arange(20_000, dtype=np.float32), np.zeros((1, 3), dtype=np.int64)

    def cases() -> Iterator[Case]:
        for number in range(2):
            inputs: dict[str, Any] = {"a": large + number, "b": small}
            yield Case(graph="g", samples="random", inputs=inputs, expected={"a": large - number})

    found = kept_in_files(cases(), tmp_path / "scratch")
    assert [case.graph for case in found] == ["g", "g"]
    for number, case in enumerate(found):
        assert isinstance(case.inputs["a"], np.memmap)
        assert case.inputs["b"] is small
        assert np.array_equal(case.inputs["a"], large + number)
        assert np.array_equal(case.expected["a"], large - number)
    assert len(list((tmp_path / "scratch").iterdir())) == 4


@pytest.mark.usefixtures("streams")
def test_buffers_are_loaded(tmp_path: Path) -> None:
    """A batch normalisation's statistics are buffers; they lie beside the weights in the same file."""
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetForImageClassification(config).save_pretrained(tmp_path)
    halve(tmp_path)
    model = load_pretrained(ResNetForImageClassification, tmp_path)
    assert len(list(streamed_parameters(model))) == len(list(model.parameters())) > 4
    assert not [name for name, value in model.named_buffers() if isinstance(value, StreamedTensor)]
    expected = ResNetForImageClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels).logits, expected(pixels).logits, rtol=0, atol=0)


def test_memory_is_that_of_a_few_weights(tmp_path: Path) -> None:
    """0.37 B parameters in few and large tensors; as float32 they have 1.4 GB."""
    folder = write(tmp_path / "checkpoint", "wide-0.4b")
    words: list[str | Path] = ["export", folder, "-o", tmp_path / "out.bundle", "--no-verify"]
    found = watch([sys.executable, "-c", "from edgevqa.cli.main import main; main()", *words])
    parameters = Bundle.open(tmp_path / "out.bundle").manifest.source.parameters
    assert parameters > 350_000_000
    floats_mb = parameters * 4 / 2**20
    assert found.peak_anonymous_mb < 0.8 * floats_mb
    assert found.peak_mb < 1.5 * floats_mb / 2 + 1024
    opened = watch([sys.executable, "-c", RUN_MAPPED, tmp_path / "out.bundle"])
    assert json.loads(opened.output) == [1, 32064]
    assert opened.peak_anonymous_mb < 0.2 * floats_mb
    assert opened.peak_mapped_mb > 0.4 * floats_mb  # pages come and go, and are looked at now and then
    shutil.rmtree(tmp_path)
