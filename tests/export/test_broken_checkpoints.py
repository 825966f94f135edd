"""Checkpoints that are damaged, incomplete, quantised or foreign: each is refused in a sentence that says what to do."""

from __future__ import annotations

import json
import pickle
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration, ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from edgevqa.export.assets import load_tokenizer, read_tokenizer, tokenizer_bytes
from edgevqa.export.families.instructblip import InstructBlip
from edgevqa.export.families.smolvlm import tile_tokens
from edgevqa.export.families.vit import ViT
from edgevqa.export.generation import generation_spec
from edgevqa.export.pretrained import load_pretrained
from edgevqa.export.processors import fixed_image_spec, load_image_processor
from edgevqa.export.prompts import prompt_template
from edgevqa.export.sentencepiece_files import siglip_tokenizer
from edgevqa.export.sources import Source, resolve_source
from edgevqa.export.weight_files import read_stored, refuse_integers
from edgevqa.runtime.errors import CheckpointError
from tests.families.tiny.tokenizers import bert_tokenizer

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
WEIGHTS = "model.safetensors"
LONGEST = 700  # characters of a message: no list of everything that transformers knows


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ViT as the hub would have it."""
    folder = tmp_path_factory.mktemp("whole")
    config = ViTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        id2label={0: "cat", 1: "dog"},
        label2id={"cat": 0, "dog": 1},
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "checkpoint"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Nothing can be connected to; the addresses that were tried."""
    tried: list[Any] = []

    def connect(_: socket.socket, address: Any) -> None:
        tried.append(address)
        raise OSError("no network in this test")

    def look_up(host: Any, *_: Any, **__: Any) -> list[Any]:
        tried.append(host)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return tried


def source(folder: Path, family: str) -> Source:
    return Source(kind="folder", family=family, id="tiny", path=folder, root=folder)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refused(call: Callable[[], object], *said: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        call()
    message = str(caught.value)
    for each in said:
        assert each in message
    assert len(message) < LONGEST
    assert "huggingface.co" not in message
    assert "weights_only" not in message
    return message


def load(folder: Path) -> Any:
    return load_pretrained(ViTForImageClassification, folder)


def test_the_whole_checkpoint_is_loaded(folder: Path) -> None:
    assert load(folder).config.id2label == {0: "cat", 1: "dog"}
    assert list(ViT().load(source(folder, "vit")).labels) == ["cat", "dog"]


def test_a_configuration_of_fewer_layers_than_the_weights_have_is_refused(folder: Path) -> None:
    change(folder / "config.json", num_hidden_layers=1)
    assert refused(
        lambda: load(folder), "has weights of more layers than ViTForImageClassification", ".1.", "same checkpoint"
    )


def test_weights_that_no_graph_needs_may_be_there(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    left_over = {"vit.pooler.dense.weight": torch.ones(32, 32), "vit.layers.0.attention.rotary.inv_freq": torch.ones(4)}
    save_file({**tensors, **left_over}, folder / WEIGHTS, {"format": "pt"})
    assert not {"pooler", "rotary"} & {part for name in load(folder).state_dict() for part in name.split(".")}


def test_a_part_of_the_configuration_that_nobody_reads_may_name_any_model(folder: Path) -> None:
    """Published configurations hold what was left of their training, such as a resampler's."""
    change(folder / "config.json", perceiver_config={"model_type": "nobody"})
    assert load(folder).config.num_hidden_layers == 2


# Tokenizers.


@pytest.mark.parametrize("kind", ["t5", "blip-2", "bert", "clip", "llama"])
def test_no_tokenizer_is_invented_where_there_are_no_files(tmp_path: Path, kind: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert refused(
        lambda: tokenizer_bytes(tmp_path), str(tmp_path), "tokenizer.json", "vocab.json with merges.txt", "spiece"
    )


@pytest.mark.parametrize(("kind", "name"), [("t5", "vocab.txt"), ("qwen2_5_vl", "tokenizer.model")])
def test_nor_where_they_are_those_of_another_kind(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    (tmp_path / name).write_text("one\ntwo\n")
    assert refused(lambda: tokenizer_bytes(tmp_path), str(tmp_path), "Copy", "from the model's page")


def test_a_slow_tokenizers_own_files_still_make_one(tmp_path: Path) -> None:
    fast = bert_tokenizer()
    vocabulary = sorted(fast.get_vocab().items(), key=lambda item: item[1])
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word, _ in vocabulary))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    question = "what color is the ball?"
    assert read_tokenizer(tokenizer_bytes(tmp_path)).encode(question).ids == fast(question)["input_ids"]


def test_a_vocabulary_without_words_is_refused(tmp_path: Path) -> None:
    words = {"[PAD]": 0, "[UNK]": 1}
    added = [
        {"id": index, "content": name, "special": True, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False}
        for name, index in words.items()
    ]
    model = {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": added, "model": model}))
    assert refused(lambda: tokenizer_bytes(tmp_path), str(tmp_path), "empty vocabulary")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"\xff\xfe\x00",
        lambda data: b"{}",
        lambda data: b"<html>404</html>",
    ],
    ids=["truncated", "empty", "binary", "no tokenizer", "html"],
)
def test_a_damaged_tokenizer_is_refused_when_it_is_read(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    bert_tokenizer().save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    assert tokenizer_bytes(tmp_path) == path.read_bytes()
    path.write_bytes(damage(path.read_bytes()))
    assert refused(lambda: tokenizer_bytes(tmp_path), str(path), "not a tokenizer file")


def test_the_q_formers_tokenizer_is_missed_at_once(tmp_path: Path, no_network: list[Any]) -> None:
    heads = {"model_type": "instructblip", "architectures": ["InstructBlipForConditionalGeneration"]}
    (tmp_path / "config.json").write_text(json.dumps(heads))
    assert refused(lambda: InstructBlip().load(source(tmp_path, "instructblip")), "qformer_tokenizer does not exist")
    (tmp_path / "qformer_tokenizer").mkdir()
    assert refused(
        lambda: InstructBlip().load(source(tmp_path, "instructblip")), "qformer_tokenizer has no tokenizer.json"
    )
    (tmp_path / "qformer_tokenizer" / "vocab.txt").write_text("one\ntwo\n")
    (tmp_path / "qformer_tokenizer" / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    assert refused(lambda: InstructBlip().load(source(tmp_path, "instructblip")), "qformer_tokenizer")
    assert not no_network


@pytest.mark.parametrize("read", [load_tokenizer, lambda folder: prompt_template(folder, default="{question}")])
@pytest.mark.parametrize("content", ["{", "[]", '{"tokenizer_class": 3}', '{"added_tokens_decoder": 7}'])
def test_settings_of_a_tokenizer_that_are_damaged(tmp_path: Path, content: str, read: Any) -> None:
    bert_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "tokenizer_config.json").write_text(content)
    assert refused(lambda: read(tmp_path), str(tmp_path))


def test_the_names_of_tiles_need_settings_that_can_be_read(tmp_path: Path) -> None:
    bert_tokenizer().save_pretrained(tmp_path)
    data = tokenizer_bytes(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    assert refused(lambda: tile_tokens(tmp_path, data, None, 1), "tokenizer_config.json", "JSON")


def test_a_chat_template_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe{{ messages }}")
    assert refused(lambda: prompt_template(tmp_path, default=""), "chat_template.jinja", "UTF-8")


# Weights.


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quantised (bitsandbytes)"),
        ({"load_in_8bit": True}, "quantised (bitsandbytes)"),
        ({"quant_method": "gptq", "bits": 4}, "quantised (gptq)"),
        ({"quant_method": "fp8"}, "quantised (fp8)"),
        ({"quant_method": "never heard of"}, "quantised (never heard of)"),
        ({"bits": 4}, "quantised (unknown method)"),
    ],
)
@pytest.mark.parametrize("inner", [False, True])
def test_quantised_checkpoints_are_refused(folder: Path, settings: dict[str, Any], said: str, inner: bool) -> None:
    value = {"quantization_config": settings}
    change(folder / "config.json", **({"text_config": value} if inner else value))
    assert refused(lambda: load(folder), said, "take the unquantised checkpoint")


def test_an_empty_quantization_config_says_nothing(folder: Path) -> None:
    change(folder / "config.json", quantization_config=None)
    assert load(folder).config.num_hidden_layers == 2


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.int64])
@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("name", ["classifier.weight", "classifier.bias", "vit.embeddings.cls_token"])
def test_integers_are_no_weights(folder: Path, dtype: torch.dtype, pickled: bool, name: str) -> None:
    state = load_file(folder / WEIGHTS)
    state[name] = state[name].to(dtype)
    save(folder, state, pickled=pickled)
    assert refused(lambda: load(folder), name, "expected floating point numbers", "unquantised")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("pickled", [False, True])
def test_weights_of_any_floating_type_are(folder: Path, dtype: torch.dtype, pickled: bool) -> None:
    save(folder, {name: value.to(dtype) for name, value in load_file(folder / WEIGHTS).items()}, pickled=pickled)
    assert {value.dtype for value in load(folder).parameters()} == {torch.float32}


def test_buffers_may_be_integers(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    state["vit.embeddings.position_ids"] = torch.arange(4)
    state["decoder.h.0.attn.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.bool)  # GPT-2's mask
    save(folder, state, pickled=False)
    assert {value.dtype for value in load(folder).parameters()} == {torch.float32}
    refuse_integers(read_stored(folder))


def save(folder: Path, state: dict[str, torch.Tensor], *, pickled: bool) -> None:
    (folder / WEIGHTS).unlink()
    if pickled:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


class Foreign:
    """An object that only code could make again."""


@pytest.mark.parametrize(
    "content",
    [pickle.dumps(Foreign()), pickle.dumps({"a": Foreign()}), b"hello world\n", b"PK\x03\x04 and no more", b"\x80\x02"],
    ids=["object", "objects", "text", "zip", "cut"],
)
def test_files_that_pytorch_did_not_save(folder: Path, content: bytes) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    assert refused(lambda: load(folder), "pytorch_model.bin is no file of weights", "model.safetensors")


def test_a_pickle_of_other_things(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save([torch.zeros(2)], folder / "pytorch_model.bin")
    assert refused(lambda: load(folder), "pytorch_model.bin holds no dictionary of tensors")


@pytest.mark.parametrize("name", [WEIGHTS, "pytorch_model.bin"])
def test_pointers_of_git_lfs_are_named(folder: Path, name: str) -> None:
    (folder / WEIGHTS).unlink()
    (folder / name).write_text(POINTER)
    assert refused(lambda: load(folder), name, "Git LFS pointer", "`git lfs pull`")


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("config.json", lambda folder: resolve_source(str(folder), config=None, root=folder)),
        ("tokenizer.json", tokenizer_bytes),
        ("vocab.txt", tokenizer_bytes),
        ("spiece.model", siglip_tokenizer),
        ("chat_template.jinja", lambda folder: prompt_template(folder, default="")),
        ("preprocessor_config.json", load_image_processor),
        ("generation_config.json", load),
    ],
)
def test_other_files_may_be_pointers_too(folder: Path, name: str, read: Callable[[Path], object]) -> None:
    (folder / name).write_text(POINTER)
    assert refused(lambda: read(folder), name, "`git lfs pull`")


def test_an_official_checkpoint_may_be_a_pointer(tmp_path: Path) -> None:
    path = tmp_path / "best.pth"
    path.write_text(POINTER)
    assert refused(lambda: resolve_source(str(path), config=tmp_path / "a.yaml", root=tmp_path), "`git lfs pull`")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"a": "one.safetensors", "b": "two.safetensors"}, "two.safetensors does not exist"),
        ({"a": "../one.safetensors"}, "beside it"),
        ({}, "no weight_map"),
        ([], "no weight_map"),
        ({"a": 3}, "no weight_map"),
    ],
)
def test_indexes_that_lead_nowhere(folder: Path, table: Any, said: str) -> None:
    (folder / WEIGHTS).rename(folder / "one.safetensors")
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": table}))
    assert refused(lambda: load(folder), said)


def test_weights_that_are_missing_or_cut(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    for content, said in ((data[:100], "not a whole safetensors file"), (b"", "is empty")):
        (folder / WEIGHTS).write_bytes(content)
        assert refused(lambda: load(folder), WEIGHTS, said)
    (folder / WEIGHTS).unlink()
    assert refused(lambda: load(folder), "holds no weights", WEIGHTS, "pytorch_model.bin")


def test_a_model_of_many_times_its_weights_is_never_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default LLaVA has 7 billion parameters: it would take all memory before a weight is missed."""
    monkeypatch.setattr(LlavaForConditionalGeneration, "from_pretrained", lambda *_, **__: pytest.fail("it was made"))
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    save_file({"a": torch.zeros(100_000)}, tmp_path / WEIGHTS)
    assert refused(lambda: load_pretrained(LlavaForConditionalGeneration, tmp_path), "parameters", "hold 100,000")


def test_nor_one_of_many_times_its_layers(folder: Path) -> None:
    change(folder / "config.json", num_hidden_layers=10**7)
    assert refused(lambda: load(folder), "num_hidden_layers 10000000", "tensors")


def test_adapters_are_to_be_merged_first(folder: Path, no_network: list[Any]) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "some/where"}')
    assert refused(lambda: load(folder), "adapter_config.json", "Merge the two")
    assert not no_network


def test_shapes_that_differ_are_told(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    state["classifier.weight"] = torch.zeros(5, 32)
    save(folder, state, pickled=False)
    assert refused(lambda: load(folder), "classifier.weight (5, 32), expected (2, 32)", "another shape")


# Configurations.


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_size": "big"},
        {"num_attention_heads": 0},
        {"num_attention_heads": 5},
        {"hidden_act": "never heard of"},
        {"image_size": [32]},
        {"patch_size": 0},
        {"hidden_size": -4},
    ],
)
def test_values_that_no_model_can_have(folder: Path, values: dict[str, Any]) -> None:
    change(folder / "config.json", **values)
    assert refused(lambda: load(folder), str(folder))


@pytest.mark.parametrize("part", [{"model_type": "never_heard_of"}, "llama", 7])
def test_parts_of_unknown_models(tmp_path: Path, part: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": part}))
    save_file({"a": torch.zeros(1)}, tmp_path / WEIGHTS)
    assert refused(lambda: load_pretrained(LlavaForConditionalGeneration, tmp_path), "config.json")


@pytest.mark.parametrize("where", ["", "text_config"])
def test_a_model_that_reads_no_tokens(tmp_path: Path, where: str) -> None:
    """A table of rotary positions is made of any length: nothing else would fail."""
    values: dict[str, Any] = {"max_position_embeddings": -8}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", **({where: values} if where else values)}))
    save_file({"a": torch.zeros(1)}, tmp_path / WEIGHTS)
    assert refused(
        lambda: load_pretrained(LlavaForConditionalGeneration, tmp_path), "max_position_embeddings -8", "from 1"
    )


@pytest.mark.parametrize("labels", [{}, {"0": "cat", "2": "dog"}, {"0": "cat", "1": None}])
def test_classes_without_names(folder: Path, labels: dict[str, Any]) -> None:
    change(folder / "config.json", id2label=labels, label2id={})
    if not labels:  # a head for no class is none
        save(folder, {k: v for k, v in load_file(folder / WEIGHTS).items() if "classifier" not in k}, pickled=False)
    assert refused(lambda: ViT().load(source(folder, "vit")), "id2label", "expected a name")


@pytest.mark.parametrize("content", ["{", "", "[]", '{"max_length": "long"}', '{"num_beams": {}}'])
def test_generation_defaults_that_cannot_be_used(folder: Path, content: str) -> None:
    (folder / "generation_config.json").write_text(content)
    if "max" in content or "beams" in content:
        config = SimpleNamespace(get_text_config=lambda decoder: SimpleNamespace())
        defaults = {"max_new_tokens": "long", "num_beams": 1, "length_penalty": 1.0, "repetition_penalty": 1.0}
        model = SimpleNamespace(generation_config=SimpleNamespace(**defaults), config=config)
        assert refused(lambda: generation_spec(model), "generation_config.json", "no number")
    else:
        assert refused(lambda: load(folder), "generation_config.json")


# Image processors.


def test_no_code_of_a_checkpoint_is_run_nor_asked_about(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked on the terminal"))
    custom = {"image_processor_type": "OwnProcessor", "auto_map": {"AutoImageProcessor": "own.OwnProcessor"}}
    (folder / "preprocessor_config.json").write_text(json.dumps(custom))
    (folder / "own.py").write_text("raise SystemExit('run')\n")
    assert refused(lambda: load_image_processor(folder), "preprocessor_config.json", "own.OwnProcessor", "not run")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"image_processor_type": "never heard of"}, "'never heard of', cannot be used: the installed"),
        ({"image_processor_type": 5}, "5"),
        ({"image_processor_type": "ViTImageProcessor", "resample": 77}, "resample"),
        ({"image_processor_type": "ViTImageProcessor", "resample": None}, "values"),
        ({"image_processor_type": "ViTImageProcessor", "image_mean": "red"}, "values"),
        ({"image_processor_type": "ViTImageProcessor", "image_mean": [0.5]}, "expected 3 numbers"),
        ({"image_processor_type": "ViTImageProcessor", "image_std": [1.0, 0.0, 1.0]}, "zero"),
        ({"image_processor_type": "ViTImageProcessor", "size": "big"}, ""),
        ({"image_processor_type": "ViTImageProcessor", "rescale_factor": "half"}, "values"),
    ],
)
def test_image_processors_that_cannot_be_used(folder: Path, content: dict[str, Any], said: str) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    assert refused(lambda: fixed_image_spec(folder, size=32), str(folder / "preprocessor_config.json"), said)


def test_no_image_processor_at_all(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    assert refused(
        lambda: load_image_processor(folder), str(folder), "preprocessor_config.json or processor_config.json"
    )
