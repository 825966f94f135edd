"""QA-ViT on other hosts: small random hosts, with fusion whose gates are open."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgevqa.export import export
from edgevqa.export.families import family
from edgevqa.export.families.qavit_hosts import QAViTHost
from edgevqa.export.pretrained import load_pretrained
from edgevqa.export.samples import PICTURES
from edgevqa.models.qavit.hosts import WEIGHTS_NAME, HostConfig, QuestionAware
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import CheckpointError, ConfigError
from edgevqa.runtime.pipeline import Pipeline
from tests.families import test_blip2, test_instructblip, test_llava
from tests.families.contract import QUESTION, FamilyContract

QUESTIONS = [QUESTION, "how many dogs are there?", "what is it?"]


class HostContract(FamilyContract):
    """The contract of a host with fusion; a subclass names the host's own test class."""

    __test__ = False
    host: ClassVar[type[FamilyContract]]
    model_class: ClassVar[str]
    integration_point: ClassVar[str] = "late"

    @classmethod
    def make(cls, folder: Path) -> None:
        import transformers

        (folder / "host").mkdir()
        cls.host.make(folder / "host")
        config = HostConfig(model_type=cls.family, integration_point=cls.integration_point, max_question_tokens=24)
        model = load_pretrained(getattr(transformers, cls.model_class), folder / "host")
        kind = family(cls.family)
        assert isinstance(kind, QAViTHost)
        aware = QuestionAware(model, kind.tower(model), config)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, parameter in aware.fusion.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(torch.ones(1) if name.endswith("gate") else parameter + 0.4 * noise)
        aware.save_fusion(folder)

    @classmethod
    def processed(cls, folder: Path, rgb: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
        return cls.host.processed(folder / "host", rgb)

    @classmethod
    def prompt_ids(cls, folder: Path, question: str) -> list[int] | None:
        return cls.host.prompt_ids(folder / "host", question)

    def test_the_question_reaches_the_vision_tower_and_the_trunk_is_reused(self, bundle_path: Path) -> None:
        image = next(iter(sorted(PICTURES.glob("*.png"))))
        with Pipeline.load(bundle_path) as pipeline:
            alone = [pipeline.answer(image, question, max_new_tokens=10).tokens for question in QUESTIONS]
            assert pipeline.statistics.runs["vision_trunk"] == 1
            assert pipeline.statistics.runs["vision_fusion"] == len(QUESTIONS)
            together = pipeline.answer(image, QUESTIONS, max_new_tokens=10)
            assert pipeline.statistics.runs["vision_trunk"] == 1
            assert [answer.tokens for answer in together] == alone
            names = {spec.name for spec in pipeline.graphs.inputs("vision_fusion").values()}
        assert names == {"trunk_states", "question_states", "attention_mask"}


class TestQAViTLlava(HostContract):
    __test__ = True
    family = "qavit_llava"
    host, model_class = test_llava.TestLlava, "LlavaForConditionalGeneration"
    graphs = frozenset({"vision_trunk", "question_encoder", "vision_fusion", "projector", "language_decoder"})

    def test_each_integration_point_is_exported(self, folder: Path, tmp_path: Path) -> None:
        for point in ("all", "sparse"):
            (tmp_path / point).mkdir()
            (tmp_path / point / "host").symlink_to(folder / "host")
            config = HostConfig(model_type=self.family, integration_point=point)
            model = load_pretrained(_llava(), folder / "host")
            aware = QuestionAware(model, family(self.family).tower(model), config)  # type: ignore[attr-defined]
            aware.save_fusion(tmp_path / point)
            exported = export(str(tmp_path / point), tmp_path / f"{point}.bundle").bundle
            assert exported.manifest.model["trunk_layers"] == 0
            assert (
                exported.manifest.parity["fp32"].answers_identical == exported.manifest.parity["fp32"].answers_compared
            )

    def test_a_closed_gate_and_no_question_tokens_leave_the_host_as_it_was(self, folder: Path) -> None:
        model = load_pretrained(_llava(), folder / "host")
        pixels = torch.randn(1, 3, 32, 32)
        with torch.no_grad():
            before = model.model.get_image_features(pixels).pooler_output[0]
            aware = QuestionAware(model, family(self.family).tower(model), HostConfig(model_type=self.family))  # type: ignore[attr-defined]
            ids = torch.tensor([[5, 6, 7]])
            with aware.asking(ids, torch.zeros_like(ids)):
                masked = model.model.get_image_features(pixels).pooler_output[0]
            with aware.asking(ids, torch.ones_like(ids)):
                asked = model.model.get_image_features(pixels).pooler_output[0]
        torch.testing.assert_close(masked, before, rtol=0, atol=1e-5)
        assert (asked - before).abs().max() > 1e-3, "with its gate closed the question still gives keys and values"

    def test_wrong_folders_are_told(self, folder: Path, tmp_path: Path) -> None:
        for name in ("config.json", WEIGHTS_NAME):
            (tmp_path / name).write_bytes((folder / name).read_bytes())
        (tmp_path / "host").symlink_to(folder / "host")
        (tmp_path / WEIGHTS_NAME).unlink()
        with pytest.raises(CheckpointError, match=f"has no {WEIGHTS_NAME}"):
            export(str(tmp_path), tmp_path / "x.bundle")
        HostConfig(model_type="qavit_blip2").save(tmp_path)
        with pytest.raises(CheckpointError, match="a 'llava'; expected a 'blip-2'"):
            export(str(tmp_path), tmp_path / "x.bundle")
        HostConfig(model_type=self.family, integration_point="middle").save(tmp_path)
        with pytest.raises(ConfigError, match="'middle' is unknown"):
            export(str(tmp_path), tmp_path / "x.bundle")
        assert not (tmp_path / "x.bundle").exists()


class TestQAViTBlip2T5(HostContract):
    __test__ = True
    family = "qavit_blip2"
    host, model_class = test_blip2.TestBlip2T5, "Blip2ForConditionalGeneration"
    graphs = frozenset(
        {"vision_trunk", "question_encoder", "vision_fusion", "qformer", "language_encoder", "language_decoder"}
    )


class TestQAViTBlip2OPT(HostContract):
    __test__ = True
    family = "qavit_blip2"
    host, model_class = test_blip2.TestBlip2Opt, "Blip2ForConditionalGeneration"
    graphs = frozenset({"vision_trunk", "question_encoder", "vision_fusion", "qformer", "language_decoder"})
    integration_point = "all"
    quantized = False


class TestQAViTInstructBlip(HostContract):
    __test__ = True
    family = "qavit_instructblip"
    host, model_class = test_instructblip.TestInstructBlipT5, "InstructBlipForConditionalGeneration"
    graphs = frozenset(
        {"vision_trunk", "question_encoder", "vision_fusion", "qformer", "language_encoder", "language_decoder"}
    )

    def test_both_tokenizers_of_the_question_are_kept(self, bundle_path: Path) -> None:
        assert set(Bundle.open(bundle_path).manifest.texts) == {"qformer", "fusion"}


def _llava() -> Any:
    from transformers import LlavaForConditionalGeneration

    return LlavaForConditionalGeneration
