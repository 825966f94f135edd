"""The family `vit_mae`, on small random models: encoder and decoder, and the encoder alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import ViTMAEConfig, ViTMAEForPreTraining, ViTMAEModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import ConfigError
from edgevqa.runtime.manifest import ImageSpec
from edgevqa.runtime.pipeline import Pipeline
from edgevqa.runtime.pipelines.features import PatchSpec, assemble, draw_mask, noise
from edgevqa.runtime.preprocessing import prepare
from tests.families.contract import QUESTION, FamilyContract, picture

SIZE, PATCH = 32, 8
PATCHES = (SIZE // PATCH) ** 2


def save(model_class: Any, folder: Path, *, normalized: bool) -> None:
    torch.manual_seed(0)
    config = ViTMAEConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        decoder_hidden_size=24,
        decoder_intermediate_size=48,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        norm_pix_loss=normalized,
        initializer_range=0.3,
    )
    model = model_class(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("cls_token", "mask_token", "decoder_pos_embed")):  # they begin with zeros
            torch.nn.init.normal_(parameter, std=0.7)
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)


class MaeContract(FamilyContract):
    family = "vit_mae"

    @classmethod
    def processed(cls, folder: Path, rgb: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
        processor = ViTImageProcessorPil.from_pretrained(folder)
        return {"pixel_values": processor(rgb, return_tensors="np")["pixel_values"]}

    @classmethod
    def prompt_ids(cls, folder: Path, question: str) -> list[int] | None:
        return None

    def test_features_are_those_of_every_patch(self, folder: Path, bundle_path: Path) -> None:
        """Not of the quarter that the eager model draws when nothing is said."""
        rgb = picture(40, 50)
        model = ViTMAEModel.from_pretrained(folder, mask_ratio=0.0).eval()
        with torch.no_grad():
            states = model(self.pixels(bundle_path, rgb), noise=torch.arange(PATCHES)[None]).last_hidden_state
        with Pipeline.load(bundle_path, backend="onnxruntime") as pipeline:
            found = pipeline.features(rgb)
            answer = pipeline.answer(rgb, QUESTION)
        assert list(found) == ["last_hidden_state"]
        assert found["last_hidden_state"].shape == (1 + PATCHES, 32)
        np.testing.assert_allclose(found["last_hidden_state"], states[0].numpy(), rtol=0, atol=1e-5)
        assert (answer.text, answer.confidence) == ("features", 1.0)

    @staticmethod
    def pixels(bundle_path: Path, rgb: NDArray[np.uint8]) -> torch.Tensor:
        spec = Bundle.open(bundle_path).manifest.image
        assert spec is not None
        return torch.from_numpy(prepare(rgb, spec).inputs["pixel_values"])


class TestMaeForPreTraining(MaeContract):
    graphs = frozenset({"encoder", "decoder"})

    @classmethod
    def make(cls, folder: Path) -> None:
        save(ViTMAEForPreTraining, folder, normalized=True)

    @pytest.mark.parametrize(("ratio", "seed"), [(None, 0), (0.5, 3), (0.9, 4)])
    def test_masked_patches_are_predicted_as_by_the_eager_model(
        self, folder: Path, bundle_path: Path, ratio: float | None, seed: int
    ) -> None:
        check_reconstruction(folder, bundle_path, ratio, seed)

    def test_runs_are_reproducible_and_seeds_differ(self, bundle_path: Path) -> None:
        rgb = picture(SIZE, SIZE)
        with Pipeline.load(bundle_path, backend="onnxruntime") as pipeline:
            first, again, other = (pipeline.reconstruct(rgb, seed=seed) for seed in (1, 1, 2))
        np.testing.assert_array_equal(first.picture, again.picture)
        assert first.loss == again.loss
        assert (first.masked != other.masked).any()

    @pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.2, 0.99])
    def test_a_share_that_leaves_out_all_or_none_is_refused(self, bundle_path: Path, ratio: float) -> None:
        with (
            Pipeline.load(bundle_path, backend="onnxruntime") as pipeline,
            pytest.raises(ConfigError, match=f"mask ratio is {ratio}; expected 0.063 to 0.937, so that of 16 patches"),
        ):
            pipeline.reconstruct(picture(SIZE, SIZE), mask_ratio=ratio)


class TestMaeEncoder(MaeContract):
    graphs = frozenset({"encoder"})
    quantized = False

    @classmethod
    def make(cls, folder: Path) -> None:
        save(ViTMAEModel, folder, normalized=False)

    def test_it_says_that_it_cannot_reconstruct(self, bundle_path: Path) -> None:
        with (
            Pipeline.load(bundle_path, backend="onnxruntime") as pipeline,
            pytest.raises(ConfigError, match=r"no graph 'decoder' .* ViTMAEForPreTraining"),
        ):
            pipeline.reconstruct(picture(SIZE, SIZE))


@pytest.mark.parametrize("normalized", [False, True])
def test_a_perfect_prediction_gives_the_picture_back(normalized: bool) -> None:
    """Whether patches are predicted as they are, or with mean 0 and variance 1."""
    settings = PatchSpec(patches=PATCHES, patch=PATCH, mask_ratio=0.75, normalized=normalized)
    half = [0.5, 0.5, 0.5]
    spec = ImageSpec(
        height=SIZE,
        width=SIZE,
        resize=None,
        crop=None,
        resample="bilinear",
        rescale_factor=1 / 255,
        mean=half,
        std=half,
        settings=msgspec.to_builtins(settings),
    )
    rgb = picture(SIZE, SIZE)
    pixels = prepare(rgb, spec).inputs["pixel_values"]
    config = ViTMAEConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=1, image_size=SIZE, patch_size=PATCH)
    values = ViTMAEForPreTraining(config).patchify(torch.from_numpy(pixels))
    if normalized:
        values = (values - values.mean(-1, keepdim=True)) / (values.var(-1, keepdim=True) + 1e-6) ** 0.5
    mask = draw_mask(settings, None, 7)
    found = assemble(pixels[0], values[0].numpy(), mask, spec)
    np.testing.assert_array_equal(found.picture, rgb)
    assert found.loss == pytest.approx(0, abs=1e-9)
    worse = assemble(pixels[0], (values[0] + 0.5).numpy(), mask, spec)
    assert worse.loss == pytest.approx(0.25, rel=1e-5)
    hidden = found.masked.repeat(PATCH, axis=0).repeat(PATCH, axis=1)
    assert found.masked.sum() == 12
    assert (found.seen[hidden] == 128).all()
    np.testing.assert_array_equal(found.seen[~hidden], rgb[~hidden])
    np.testing.assert_array_equal(worse.picture[~hidden], rgb[~hidden])


def check_reconstruction(folder: Path, bundle_path: Path, ratio: float | None, seed: int) -> None:
    """Loss, mask and pixels of the eager model with the same numbers drawn."""
    rgb = picture(40, 50, seed)
    model = ViTMAEForPreTraining.from_pretrained(folder).eval()
    model.config.mask_ratio = model.config.mask_ratio if ratio is None else ratio
    pixels = MaeContract.pixels(bundle_path, rgb)
    with torch.no_grad():
        found = model(pixels, noise=torch.from_numpy(noise(PATCHES, seed))[None])
        values = found.logits
        if model.config.norm_pix_loss:
            target = model.patchify(pixels)
            values = values * (target.var(dim=-1, keepdim=True) + 1e-6) ** 0.5 + target.mean(dim=-1, keepdim=True)
        predicted = model.unpatchify(values)[0].permute(1, 2, 0).numpy()
    masked = found.mask[0].bool().reshape(SIZE // PATCH, SIZE // PATCH).numpy()
    with Pipeline.load(bundle_path, backend="onnxruntime") as pipeline:
        result = pipeline.reconstruct(rgb, mask_ratio=ratio, seed=seed)
    processor = ViTImageProcessorPil.from_pretrained(folder)
    seen = np.asarray(pixels[0].permute(1, 2, 0))
    everywhere = masked.repeat(PATCH, axis=0).repeat(PATCH, axis=1)[..., None]
    values01 = np.where(everywhere, predicted, seen) * processor.image_std + processor.image_mean
    expected = np.clip(values01 * 255, 0, 255)
    np.testing.assert_array_equal(result.masked, masked)
    assert result.loss == pytest.approx(float(found.loss), rel=1e-4)
    assert np.abs(result.picture - expected).max() <= 0.51
    assert (result.seen == result.picture).all(axis=-1)[~everywhere[..., 0]].all()
