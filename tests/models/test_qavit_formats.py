"""Loading checkpoints: formats, T5 flavours that the golden data lacks, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from edgevqa.models.qavit import QAViTConfig, QAViTForVQA, fused_layers
from edgevqa.models.qavit.official import load_official, read_official_config
from edgevqa.runtime.errors import CheckpointError, ConfigError, EdgeVQAError, NetworkError

Write = Callable[..., Path]


def load(folder: Path) -> QAViTForVQA:
    return load_official(folder / "ckpt.pth", folder / "config.yaml", root=folder).model


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ("all", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("early", [0, 1, 2, 3]),
        ("late", [4, 5, 6, 7]),
        ("late2", [6, 7]),
        ("late3", [2, 3, 4, 5, 6, 7]),
        ("sparse", [0, 2, 4, 6]),
        ("none", []),
    ],
)
def test_integration_points(point: str, expected: list[int]) -> None:
    assert list(fused_layers(point, 8)) == expected


@pytest.mark.parametrize("flan", [True, False], ids=["gated-untied", "relu-tied"])
def test_t5_flavours_equal_transformers(official: Write, flan: bool) -> None:
    """The same weights in transformers' own T5, loaded as transformers loads them."""
    folder = official(flan=flan, lora=False, integration_point="none")
    model = load(folder)
    state = torch.load(folder / "ckpt.pth", weights_only=True)["model"]
    theirs = transformers_t5(folder, state)
    hidden = torch.randn(2, 9, 48, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[0, 5, 7], [0, 9, 4]])
    with torch.no_grad():
        expected_hidden = theirs.encoder(inputs_embeds=hidden).last_hidden_state
        expected = theirs(encoder_outputs=BaseModelOutput(expected_hidden), decoder_input_ids=ids).logits
        found_hidden = model.language_model.encoder(inputs_embeds=hidden).last_hidden_state
        found = model.language_model(encoder_outputs=BaseModelOutput(found_hidden), decoder_input_ids=ids).logits
    assert float((found_hidden - expected_hidden).abs().max()) < 1e-5
    assert float((found - expected).abs().max()) < 1e-5
    tied = model.language_model.lm_head.weight.data_ptr() == model.language_model.shared.weight.data_ptr()
    assert tied is not flan


def transformers_t5(folder: Path, state: dict[str, torch.Tensor]) -> T5ForConditionalGeneration:
    """Saved and loaded by transformers, whose `from_pretrained` honours `tie_word_embeddings` (its constructor does not)."""
    raw = json.loads((folder / "pretrained" / "t5" / "config.json").read_text())
    seed = T5ForConditionalGeneration(T5Config(**raw))
    if not raw["tie_word_embeddings"]:
        seed.lm_head.weight = torch.nn.Parameter(state["lm_head.weight"].clone())
    own = {k: v for k, v in state.items() if not k.startswith(("vision.", "translation_mlp."))}
    seed.load_state_dict(own, strict=True)
    seed.config.tie_word_embeddings = raw["tie_word_embeddings"]
    seed.save_pretrained(folder / "theirs")
    (folder / "theirs" / "config.json").write_text(json.dumps(raw))
    loaded: T5ForConditionalGeneration = T5ForConditionalGeneration.from_pretrained(folder / "theirs").eval()
    return loaded


def test_own_format_round_trip_is_exact(official: Write, tmp_path: Path) -> None:
    model = load(official(lora=True))
    model.save_pretrained(tmp_path / "own")
    again = QAViTForVQA.from_pretrained(tmp_path / "own")
    assert again.config == model.config
    state, expected = again.state_dict(), model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_newer_peft_names_load_alike(official: Write) -> None:
    folder = official(lora=True)
    expected = {name: value.clone() for name, value in load(folder).state_dict().items()}  # the file is mapped
    state = torch.load(folder / "ckpt.pth", weights_only=True)["model"]
    adapted = {key.replace(".lora_A.default.weight", ".weight") for key in state if ".lora_A." in key}
    renamed = {k.replace(".weight", ".base_layer.weight") if k in adapted else k: v for k, v in state.items()}
    assert renamed.keys() != state.keys()
    torch.save({"model": renamed}, folder / "ckpt.pth")
    found = load(folder).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_lora_on_shared_reaches_the_question_path_alone(official: Write) -> None:
    folder = official(lora=True)
    model = load(folder)
    state = torch.load(folder / "ckpt.pth", weights_only=True)["model"]
    base = state["base_model.model.shared.weight"]
    assert torch.equal(model.language_model.shared.weight, base)
    down, up = (state[f"base_model.model.shared.lora_embedding_{part}.default"] for part in "AB")
    expected = base + 2.0 * (up @ down).T  # alpha 32 over rank 16
    assert torch.allclose(model.question_embedding.weight, expected, atol=1e-6)
    assert not torch.allclose(model.question_embedding.weight, base, atol=1e-2)


Breaker = Callable[[dict[str, torch.Tensor]], object]


@pytest.mark.parametrize(
    ("breaker", "said"),
    [
        (lambda s: s.pop("base_model.model.lm_head.weight"), ["missing", "language_model.lm_head.weight"]),
        (lambda s: s.update({"base_model.model.strange": torch.zeros(1)}), ["unexpected", "strange"]),
        (
            lambda s: s.update({"base_model.model.lm_head.weight": torch.zeros(3, 3)}),
            ["another shape", "language_model.lm_head.weight (3, 3)"],
        ),
        (
            lambda s: s.pop("base_model.model.encoder.block.0.layer.0.SelfAttention.q.lora_B.default.weight"),
            ["lora_A", "SelfAttention.q", "other half"],
        ),
        (
            lambda s: s.pop("base_model.model.encoder.block.0.layer.0.SelfAttention.q.lora_A.default.weight"),
            ["lora_B", "SelfAttention.q", "other half"],
        ),
        (
            lambda s: s.update({"base_model.model.encoder.embed_tokens.weight": torch.zeros(300, 48)}),
            ["encoder.embed_tokens.weight", "shared.weight"],
        ),
        (lambda s: [s.pop(k) for k in list(s) if "lora" in k], ["use_lora: True", "no LoRA"]),
    ],
    ids=["missing", "unexpected", "misshapen", "no-B", "no-A", "other-table", "no-lora"],
)
def test_foreign_checkpoints_are_refused_by_name(official: Write, breaker: Breaker, said: list[str]) -> None:
    folder = official(lora=True)
    loaded = torch.load(folder / "ckpt.pth", weights_only=True)
    breaker(loaded["model"])
    torch.save(loaded, folder / "ckpt.pth")
    with pytest.raises(CheckpointError) as error:
        load(folder)
    assert all(word in str(error.value) for word in said)


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ("lora_rank: 4", ConfigError, ["lora_rank", "lora_r"]),
        ("lora_alpha: 0", ConfigError, ["lora_alpha above 0"]),
        ("lora_r: 8", CheckpointError, ["lora_r is 8", "(16, 48)"]),
        ("integration_point: 'middle'", ConfigError, ["middle", "late3"]),
        ("vit_layer: 99", ConfigError, ["99"]),
        ("hidden_translation_layers: 0", ConfigError, ["projector_layers", "at least 1"]),
        ("hidden_translation_layers: 'two'", ConfigError, ["hidden_translation_layers"]),
        ("model_name: 'visual_mpt'", ConfigError, ["visual_mpt", "visual_t5"]),
        ("use_lora: False", CheckpointError, ["LoRA", "use_lora"]),
        ("vit_model: 'no-such-owner/no-such-model'", NetworkError, ["no-such-owner/no-such-model", "network"]),
    ],
)
def test_impossible_yaml_is_refused(official: Write, change: str, kind: type[EdgeVQAError], said: list[str]) -> None:
    folder = official(lora=True)
    path = folder / "config.yaml"
    key = change.partition(":")[0]
    kept = [line for line in path.read_text().splitlines() if not line.startswith(f"{key}:")]
    path.write_text("\n".join([*kept, change]))
    with pytest.raises(kind) as error:
        load(folder)
    assert all(word in str(error.value) for word in said)


def test_yaml_that_is_none(tmp_path: Path) -> None:
    for text, word in (("- a\n- b\n", "mapping"), ("a: [", "yaml"), ("", "mapping")):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError, match=word):
            read_official_config(path)


def test_pickles_that_would_run_code_are_refused(official: Write) -> None:
    folder = official(lora=False)
    torch.save({"model": {"a": Path("x")}}, folder / "ckpt.pth")
    with pytest.raises(CheckpointError, match="weights_only"):
        load(folder)
    torch.save({"state": {}}, folder / "ckpt.pth")
    with pytest.raises(CheckpointError, match="'model'"):
        load(folder)
    (folder / "ckpt.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError):
        load(folder)


def test_a_head_of_its_own_is_not_tied_away(official: Write) -> None:
    """A T5 config.json that leaves out tie_word_embeddings means tied; the checkpoint says otherwise."""
    folder = official(flan=True)
    path = folder / "pretrained" / "t5" / "config.json"
    raw = json.loads(path.read_text())
    del raw["tie_word_embeddings"]
    path.write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="tie_word_embeddings"):
        load(folder)


def test_tables_that_are_one_stay_one(official: Write) -> None:
    model = load(official(flan=False))
    tables = [model.language_model.get_parameter(name) for name in ("encoder.embed_tokens.weight", "lm_head.weight")]
    assert all(table is model.language_model.shared.weight for table in tables)
    names = [name for name, _ in model.named_parameters()]
    assert sum("embed_tokens" in name or "lm_head" in name for name in names) == 0


def test_unknown_keys_in_our_config_are_named(tmp_path: Path, official: Write) -> None:
    load(official()).save_pretrained(tmp_path / "own")
    path = tmp_path / "own" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "fusion": "late"}))
    with pytest.raises(ConfigError, match="fusion"):
        QAViTForVQA.from_pretrained(tmp_path / "own")


def test_trunk_ends_where_the_question_enters() -> None:
    raw = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 8, "num_attention_heads": 2}
    vision = {**raw, "image_size": 8, "patch_size": 4}
    text = {
        "vocab_size": 9,
        "d_model": 8,
        "d_kv": 4,
        "d_ff": 8,
        "num_layers": 1,
        "num_decoder_layers": 1,
        "num_heads": 2,
    }
    expected = {"all": 0, "early": 0, "sparse": 0, "late": 4, "late2": 6, "late3": 2, "none": 8}
    for point, layers in expected.items():
        config = msgspec.convert(
            {"vision_config": vision, "text_config": text, "integration_point": point}, type=QAViTConfig
        )
        assert config.trunk_layers == layers
