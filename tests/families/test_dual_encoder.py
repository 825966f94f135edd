"""The family `dual_encoder`, on small random models: two mechanisms in full, the heads of all others in one graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoTokenizer
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from edgevqa.calibration.describe import graph_spec
from edgevqa.calibration.linears import find_linears
from edgevqa.export.engine import child
from edgevqa.export.engine.capabilities import settled
from edgevqa.export.engine.flavours import load_toolkit
from edgevqa.export.engine.options import BuildOptions
from edgevqa.export.engine.profiles import graph_profiles
from edgevqa.export.engine.protocol import Job
from edgevqa.export.families.dual_encoder import Q_AXES
from edgevqa.export.samples import PICTURES, random_pixels, random_questions, sample_picture
from edgevqa.export.spec import GraphPlan
from edgevqa.export.trace import trace
from edgevqa.models.dual_encoder import DualEncoder
from edgevqa.models.fusion import FUSIONS, Fusion, MatchingHead
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.manifest import FileSpec, GraphSpec
from edgevqa.runtime.pipeline import Pipeline
from tests.families.contract import FAMILY_TOLERANCE, FamilyContract
from tests.families.tiny.dual_encoders import SIZE, TEXT_WIDTH, dual_encoder, save_dual_encoder

TEXTS = ["a red circle", "a blue triangle on the left", "what color is the ball?"]
OPSET = 20
OTHERS = [name for name in FUSIONS if name not in ("coordinated", "gated_feed_forward")]


class DualEncoderContract(FamilyContract):
    family = "dual_encoder"
    graphs = frozenset({"vision", "matcher"})
    quantized = False
    mechanism: ClassVar[str]
    vision: ClassVar[str] = "vit"
    model_type: ClassVar[str] = "dual_encoder"

    @classmethod
    def make(cls, folder: Path) -> None:
        save_dual_encoder(folder, cls.mechanism, vision=cls.vision, model_type=cls.model_type)

    @classmethod
    def processed(cls, folder: Path, rgb: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
        processor = ViTImageProcessorPil.from_pretrained(folder)
        return {"pixel_values": processor(rgb, return_tensors="np")["pixel_values"]}

    @classmethod
    def prompt_ids(cls, folder: Path, question: str) -> list[int] | None:
        ids: list[int] = AutoTokenizer.from_pretrained(folder, local_files_only=True)(question)["input_ids"]
        return ids


class TestCoordinatedResNet(DualEncoderContract):
    mechanism = "coordinated"
    vision = "resnet"
    graphs = frozenset({"image_encoder", "text_encoder"})
    quantized = True

    def test_scores_are_those_of_the_cosines(self, bundle_path: Path) -> None:
        image = sample_picture(sorted(file.name for file in PICTURES.glob("*.png"))[0])
        matching = Bundle.open(bundle_path).manifest.matching
        assert matching is not None
        with Pipeline.load(bundle_path) as pipeline:
            answer = pipeline.answer(image, "which?", choices=TEXTS)
            cosines = [float(pipeline.answer(image, text).text) for text in TEXTS]
        assert answer.scores is not None
        expected = np.exp(np.array(cosines) * matching.scale)
        np.testing.assert_allclose(list(answer.scores.values()), expected / expected.sum(), atol=0.05)
        assert answer.text == TEXTS[int(np.argmax(list(answer.scores.values())))]


class TestGatedFeedForward(DualEncoderContract):
    mechanism = "gated_feed_forward"
    quantized = True

    def test_choices_are_ranked_alike_alone_and_together(self, bundle_path: Path) -> None:
        """A text's probability of yes does not depend on the others in the batch, which are of other lengths."""
        image = sample_picture(sorted(file.name for file in PICTURES.glob("*.png"))[1])
        with Pipeline.load(bundle_path) as pipeline:
            ranked = pipeline.answer(image, "which?", choices=TEXTS)
            alone = [pipeline.answer(image, text) for text in TEXTS]
        odds = [np.log(each.scores["yes"] / each.scores["no"]) for each in alone if each.scores is not None]
        assert ranked.scores is not None
        expected = np.exp(odds) / np.exp(odds).sum()
        np.testing.assert_allclose(list(ranked.scores.values()), expected, atol=1e-5)
        assert ranked.text == TEXTS[int(np.argmax(odds))]


class Heads(nn.Module):
    """What a matcher does after its text model, of all the other mechanisms in one graph: a trace takes seconds."""

    def __init__(self, models: Mapping[str, DualEncoder]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict()
        for name, model in models.items():
            assert model.head is not None
            self.parts[name] = nn.ModuleDict({"fusion": model.fusion, "head": model.head})

    def forward(self, images: list[Tensor], text_states: Tensor, attention_mask: Tensor) -> list[Tensor]:
        found: list[Tensor] = []
        for part, states in zip(self.parts.values(), images, strict=True):
            fusion, head = cast("tuple[Fusion, MatchingHead]", tuple(cast("nn.ModuleDict", part).values()))
            image, text = states.expand(text_states.shape[0], -1, -1), fusion.project_text(text_states)
            found.append(head(*fusion.mix(image, text, None, attention_mask), None, attention_mask))
        return found


@dataclass(frozen=True, kw_only=True)
class Traced:
    """The graph of `Heads`."""

    models: dict[str, DualEncoder]
    path: Path
    spec: GraphSpec
    linears: set[str]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    models = {name: dual_encoder(name) for name in OTHERS}
    plan = GraphPlan(
        name="heads",
        module=Heads(models),
        args=(
            [torch.randn(1, 17, 32) for _ in OTHERS],
            torch.randn(2, 5, TEXT_WIDTH),
            torch.ones(2, 5, dtype=torch.int64),
        ),
        dynamic_shapes=([dict[int, str]()] * len(OTHERS), Q_AXES, Q_AXES),
        input_names=[*(f"image_states.{name}" for name in OTHERS), "text_states", "attention_mask"],
        output_names=[f"match_logits.{name}" for name in OTHERS],
        free_axes={f"image_states.{name}": {0: "image"} for name in OTHERS},
    )
    model = trace(plan, opset=OPSET)
    path = tmp_path_factory.mktemp("heads") / "heads.onnx"
    ir.save(model, path)
    spec = graph_spec(model, FileSpec(path=path.name, sha256="", size_bytes=path.stat().st_size))
    return Traced(models=models, path=path, spec=spec, linears=set(find_linears(model.graph)))


@pytest.mark.parametrize("pictures", [1, 3])
def test_every_other_mechanism_gives_what_eager_pytorch_gives(traced: Traced, pictures: int) -> None:
    """Three texts with padding, each with a picture of its own, or all with one."""
    torch.manual_seed(5)
    ids, mask = random_questions(3, 7, vocab_size=400)
    pixels = random_pixels(pictures, height=SIZE, width=SIZE)
    session = onnxruntime.InferenceSession(traced.path, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        eager = {name: model(pixels, ids, mask) for name, model in traced.models.items()}
        words = {name: model.text(ids, mask) for name, model in traced.models.items()}
    assert all(torch.equal(each, words["joint"]) for each in words.values())  # one seed made all the text models
    feeds = {f"image_states.{name}": each.image_states.numpy() for name, each in eager.items()}
    feeds |= {"text_states": words["joint"].numpy(), "attention_mask": mask.numpy()}
    for name, found in zip(OTHERS, session.run(None, feeds), strict=True):
        result: Any = found
        expected = eager[name].match_logits.numpy()
        np.testing.assert_allclose(result, expected, rtol=0, atol=FAMILY_TOLERANCE, err_msg=name)
        assert np.ptp(expected, axis=0).max() > 100 * FAMILY_TOLERANCE, name  # the inputs matter


def test_every_linear_can_be_quantised(traced: Traced) -> None:
    """Each keeps its name, and LayerNorms stay whole; what `vision` has computed is not among them."""
    linears, norms = set[str](), 0
    for mechanism, model in traced.models.items():
        for name, module in model.named_modules():
            if name.startswith(("fusion.", "head.")) and not name.startswith("fusion.image_in"):
                linears |= {f"parts.{mechanism}.{name}"} if isinstance(module, nn.Linear) else set()
                norms += isinstance(module, nn.LayerNorm)
    assert traced.linears == linears
    assert traced.spec.nodes["LayerNormalization"] == norms


@pytest.mark.tensorrt
def test_every_other_mechanism_becomes_an_engine(traced: Traced, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    options = BuildOptions(target="rtx", batch=(1, 4))
    job = Job(
        graph="heads",
        onnx=str(traced.path),
        engine=str(tmp_path / "heads.engine"),
        profiles=graph_profiles("heads", traced.spec, [{"batch": (1, 2, 4), "image": (1, 2, 4), "words": (1, 8, 32)}]),
        options=settled(options, "fp32", load_toolkit(options.row)),
        numerics="fp32",
        timing_cache=None,
    )
    built = child.build(job, child.Stop(), lambda phase: None)
    assert [tensor.name for tensor in built.outputs] == [f"match_logits.{name}" for name in OTHERS]
