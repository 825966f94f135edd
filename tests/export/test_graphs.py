"""The exported graphs against golden arrays, on ONNX Runtime alone, and the promises about their form."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.sessions import open_session

TOLERANCE = 1e-4  # against the published implementation; see tests/models/test_qavit_golden.py
CASES = ["s0", "s1", "s2", "s3", "b"]
Golden = Callable[[str], dict[str, np.ndarray]]
Arrays = dict[str, np.ndarray]


class Graphs:
    """All graphs of a bundle, each fed with arrays."""

    def __init__(self, path: Path) -> None:
        self.bundle = Bundle.open(path)
        names = self.bundle.manifest.variants["fp32"].graphs
        self.sessions = {name: open_session(self.bundle, "fp32", name) for name in names}

    def run(self, graph: str, **inputs: np.ndarray) -> Arrays:
        return {name: value.numpy() for name, value in self.sessions[graph].run(inputs).items()}


@pytest.fixture(scope="module")
def graphs(variant: str, golden_bundle: Callable[[str], Path]) -> Graphs:
    return Graphs(golden_bundle(variant))


def worst(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max())


def encode(graphs: Graphs, pixels: np.ndarray, ids: np.ndarray, mask: np.ndarray, seen: np.ndarray) -> Arrays:
    """Everything before the decoder; `seen` is the question mask of the fused layers. Keeps what each graph gave."""
    kept = graphs.run("vision_trunk", pixel_values=pixels)
    states = kept["trunk_states"]
    if "vision_fusion" in graphs.sessions:
        kept |= graphs.run("question_encoder", input_ids=ids, attention_mask=mask)
        question = kept["question_states"]
        kept |= graphs.run("vision_fusion", trunk_states=states, question_states=question, attention_mask=seen)
        states = kept["image_states"]
    kept["image_states"] = states
    kept |= graphs.run("projector", image_states=states)
    return kept | graphs.run("language_encoder", image_embeds=kept["image_embeds"], input_ids=ids, attention_mask=mask)


def decode(graphs: Graphs, encoded: Arrays, steps: int, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Greedy ids (batch, steps + 1) and the logits of the first step, through the cache as the runtime uses it."""
    inputs = {spec.name for spec in graphs.sessions["language_decoder"].inputs}
    fixed = {name: value for name, value in encoded.items() if name in inputs}
    batch, heads, _, head = encoded["cross_key.0"].shape
    past = {n: np.full((batch, heads, capacity, head), 99.0, np.float32) for n in inputs if n.startswith("past_")}
    ids, done, first = np.zeros((batch, 1), np.int64), np.zeros(batch, bool), np.zeros(0)
    for length in range(steps):
        found = graphs.run(
            "language_decoder", decoder_input_ids=ids[:, -1:], cache_length=np.array([length]), **past, **fixed
        )
        first = found["logits"] if length == 0 else first
        for name in past:
            past[name][:, :, length] = found[name.replace("past_", "new_")][:, :, 0]
        token = np.where(done, 0, found["logits"].argmax(-1))
        ids, done = np.concatenate([ids, token[:, None]], axis=1), done | (token == 1)
    return ids, first


@pytest.mark.parametrize("case", CASES)
def test_every_stage_matches_the_published_code(graphs: Graphs, variant: str, golden: Golden, case: str) -> None:
    arrays = golden(variant)
    ids, mask = arrays[f"{case}_input_ids"], arrays[f"{case}_attention_mask"]
    pixels = arrays["pixel_values"][arrays[f"{case}_image_index"]]
    found = encode(graphs, pixels, ids, mask, np.ones_like(mask))
    if variant != "plain":
        assert worst(found["question_states"], arrays[f"{case}_instruct_features"]) < TOLERANCE
    assert worst(found["image_states"], arrays[f"{case}_vision_out"]) < TOLERANCE
    assert worst(found["image_embeds"], arrays[f"{case}_translation_out"]) < TOLERANCE
    assert worst(found["encoder_hidden_states"], arrays[f"{case}_encoder_out"]) < TOLERANCE
    assert np.array_equal(found["encoder_attention_mask"], arrays[f"{case}_encoder_attention_mask"])
    expected = arrays[f"{case}_generated_ids"]
    generated, first = decode(graphs, found, steps=12, capacity=14)
    assert worst(first, arrays[f"{case}_first_logits"]) < TOLERANCE
    assert np.array_equal(generated[:, : expected.shape[1]], expected)


def test_answers_do_not_depend_on_the_batch(graphs: Graphs, variant: str, golden: Golden) -> None:
    arrays = golden(variant)
    ids, mask = arrays["b_input_ids"], arrays["b_attention_mask"]
    pixels = arrays["pixel_values"][arrays["b_image_index"]]
    together = encode(graphs, pixels, ids, mask, mask)
    batch_ids, batch_logits = decode(graphs, together, steps=12, capacity=12)
    for row in range(len(ids)):
        words, one = int(mask[row].sum()), slice(row, row + 1)
        alone = encode(graphs, pixels[one], ids[one, :words], mask[one, :words], mask[one, :words])
        assert worst(alone["image_states"], together["image_states"][one]) < 2e-5
        row_ids, row_logits = decode(graphs, alone, steps=12, capacity=20)
        assert worst(row_logits, batch_logits[one]) < 5e-5
        assert np.array_equal(row_ids[0], batch_ids[row])


def test_one_trunk_serves_many_questions(graphs: Graphs, variant: str, golden: Golden) -> None:
    if "vision_fusion" not in graphs.sessions:
        assert variant == "plain"
        return
    arrays = golden(variant)
    ids, mask = arrays["b_input_ids"], arrays["b_attention_mask"]
    trunk = graphs.run("vision_trunk", pixel_values=arrays["pixel_values"][:1])["trunk_states"]
    question = graphs.run("question_encoder", input_ids=ids, attention_mask=mask)["question_states"]
    broadcast = graphs.run("vision_fusion", trunk_states=trunk, question_states=question, attention_mask=mask)
    repeated = graphs.run(
        "vision_fusion", trunk_states=np.repeat(trunk, len(ids), 0), question_states=question, attention_mask=mask
    )
    assert np.array_equal(broadcast["image_states"], repeated["image_states"])


def models(bundle: Bundle) -> dict[str, onnx.ModelProto]:
    graphs = bundle.manifest.variants["fp32"].graphs
    return {name: onnx.load(bundle.root / spec.file.path, load_external_data=False) for name, spec in graphs.items()}


def test_form_of_the_graphs(graphs: Graphs) -> None:
    """One LayerNormalization a LayerNorm, no training leftovers, no control flow, IR 10, opset recorded."""
    found, layers = models(graphs.bundle), 8
    counts = {name: graphs.bundle.graph("fp32", name).nodes for name in found}
    trunk_layers = graphs.bundle.manifest.model["trunk_layers"]
    fused = graphs.bundle.manifest.model["fused_layers"]
    assert counts["vision_trunk"]["LayerNormalization"] == 1 + 2 * trunk_layers
    if fused:
        assert counts["vision_fusion"]["LayerNormalization"] == 2 * (layers - trunk_layers) + len(fused)
        # q, k, v, out, fc1, fc2, two products; a fused layer projects k and v of the question and reduces it
        assert counts["vision_fusion"]["MatMul"] == 8 * (layers - trunk_layers) + 4 * len(fused)
    for name, model in found.items():
        assert not {"Dropout", "If", "Loop", "Identity", "Constant"} & set(counts[name])
        assert model.ir_version == 10
        assert model.opset_import[0].version == graphs.bundle.graph("fp32", name).opset == 20
        assert not model.metadata_props
        assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
        onnx.checker.check_model(str(graphs.bundle.root / graphs.bundle.graph("fp32", name).file.path), full_check=True)


def test_shapes_are_inferred_and_axes_named(graphs: Graphs) -> None:
    for name, model in models(graphs.bundle).items():
        known = {value.name for value in (*model.graph.value_info, *model.graph.output)}
        lacking = {output for node in model.graph.node for output in node.output} - known
        assert not lacking, f"{name}: {sorted(lacking)[:5]}"
        spec = graphs.bundle.graph("fp32", name)
        axes = {axis for tensor in (*spec.inputs, *spec.outputs) for axis in tensor.shape if isinstance(axis, str)}
        assert axes <= {"image", "batch", "words", "capacity", "keys"}, name


def test_initializers_bear_the_parameters_names(graphs: Graphs, variant: str, golden_root: Path) -> None:
    from edgevqa.models.qavit.official import load_official

    folder = golden_root / variant
    parameters = load_official(folder / "ckpt.pth", folder / "config.yaml", root=golden_root).model.state_dict()
    for name, model in models(graphs.bundle).items():
        large = [t for t in model.graph.initializer if int(np.prod(t.dims)) > 300]  # above: shapes and bucket tables
        assert large
        for tensor in large:
            assert tensor.name in parameters, f"{name}: {tensor.name}"
            assert int(np.prod(tensor.dims)) == parameters[tensor.name].numel()
            assert not tensor.name.endswith("question_out_proj.weight")  # folded


def test_equal_weights_lie_once_in_one_file(graphs: Graphs) -> None:
    """Question and language encoder hold the same T5 encoder."""
    found = models(graphs.bundle)
    places: dict[str, dict[str, tuple[str, object]]] = {}
    for name, model in found.items():
        infos = {t.name: ExternalDataInfo(t) for t in model.graph.initializer if uses_external_data(t)}
        places[name] = {key: (info.location, info.offset) for key, info in infos.items()}
    assert {location for graph in places.values() for location, _ in graph.values()} == {"weights.data"}
    if "question_encoder" in places:
        shared = places["question_encoder"].keys() & places["language_encoder"].keys()
        assert len(shared) >= 14
        assert all(places["question_encoder"][key] == places["language_encoder"][key] for key in shared)
