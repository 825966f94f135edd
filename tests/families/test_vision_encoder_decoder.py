"""The family `vision_encoder_decoder`, on small random models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import pre_tokenizers
from transformers import (
    AutoTokenizer,
    BertConfig,
    DeiTConfig,
    GPT2Config,
    GPT2Tokenizer,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from edgevqa.export import ExportOptions, export
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import CheckpointError
from edgevqa.runtime.pipeline import Pipeline
from tests.families.contract import FamilyContract, picture

SIZE = 32
END = "<|endoftext|>"
MERGES = [("Ġ", "a"), ("Ġ", "o"), ("Ġo", "f"), ("i", "n"), ("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("o", "n")]


def tokenizer() -> Any:
    """GPT-2's byte-level BPE with few merges; the end token is the last, as there."""
    kind: Any = GPT2Tokenizer
    pieces = (*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in MERGES), END)
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    # checkpoints of its time ask for tidying, which transformers leaves out for byte pair encoding
    return kind(vocab=vocabulary, merges=MERGES, pad_token=END, clean_up_tokenization_spaces=True)


def encoder(kind: Any, *, width: int) -> Any:
    """A small vision transformer."""
    return kind(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=8,
        initializer_range=0.3,
    )


def save(folder: Path, vision: Any, decoder: Any = None, **settings: Any) -> None:
    """A random model whose captions differ from picture to picture, with processor, tokenizer and generation settings."""
    torch.manual_seed(2)
    words = tokenizer()
    gpt2 = GPT2Config(
        vocab_size=len(words),
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        bos_token_id=words.eos_token_id,
        eos_token_id=words.eos_token_id,
        initializer_range=0.3,
        **settings,
    )
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, decoder or gpt2)
    model: Any = VisionEncoderDecoderModel(config)
    for name, value in (("decoder_start_token_id", words.eos_token_id), ("pad_token_id", words.eos_token_id)):
        setattr(model.generation_config, name, value)
    processor = ViTImageProcessorPil(size={"height": SIZE, "width": SIZE})
    pixels = processor(picture(50, 70), return_tensors="pt")["pixel_values"]
    caption = model.eval().generate(pixels, max_new_tokens=8, do_sample=False)[0].tolist()
    model.generation_config.eos_token_id = [words.eos_token_id, caption[-1]]  # so that some captions end
    for part in (model, processor, words):
        part.save_pretrained(folder)


class VisionEncoderDecoderContract(FamilyContract):
    family = "vision_encoder_decoder"
    graphs = frozenset({"vision", "language_decoder"})

    @classmethod
    def processed(cls, folder: Path, rgb: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
        processor = ViTImageProcessorPil.from_pretrained(folder)
        return {"pixel_values": processor(rgb, return_tensors="np")["pixel_values"]}

    @classmethod
    def prompt_ids(cls, folder: Path, question: str) -> list[int] | None:
        ids: list[int] = AutoTokenizer.from_pretrained(folder)(question)["input_ids"]
        return ids


class TestViTGpt2(VisionEncoderDecoderContract):
    @classmethod
    def make(cls, folder: Path) -> None:
        save(folder, encoder(ViTConfig, width=32))

    def test_captions_are_those_of_the_models_own_generate(self, folder: Path, bundle_path: Path) -> None:
        words: Any = AutoTokenizer.from_pretrained(folder)
        model: Any = VisionEncoderDecoderModel.from_pretrained(folder).eval()
        captions: list[tuple[int, ...]] = []
        with Pipeline.load(bundle_path) as pipeline:
            for seed in range(3):
                rgb = picture(50, 70, seed)
                for prompt in ("", "a picture of the"):
                    answer = pipeline.answer(rgb, prompt, max_new_tokens=12)
                    beam = pipeline.answer(rgb, prompt, max_new_tokens=8, num_beams=2)
                    start = torch.tensor([[words.eos_token_id, *words(prompt)["input_ids"]]])
                    inputs = {"pixel_values": torch.from_numpy(self.processed(folder, rgb)["pixel_values"])}
                    found = model.generate(**inputs, decoder_input_ids=start.long(), max_new_tokens=12, do_sample=False)
                    assert answer.text == words.decode(found[0], skip_special_tokens=True).strip()
                    captions.append(answer.tokens)
                    found = model.generate(
                        **inputs, decoder_input_ids=start.long(), max_new_tokens=8, do_sample=False, num_beams=2
                    )
                    assert beam.text == words.decode(found[0], skip_special_tokens=True).strip()
        assert len(set(captions)) > 3
        assert {len(caption) < 12 for caption in captions} == {True, False}

    def test_conv1d_layers_are_linears_under_their_own_names(self, bundle_path: Path, quantized_path: Path) -> None:
        graph = onnx.load(bundle_path / "graphs/fp32/language_decoder.onnx", load_external_data=False).graph
        products = {node.name for node in graph.node if node.op_type == "MatMul"}
        block = "decoder.transformer.h.1"
        expected = ("attn.c_attn", "attn.c_proj", "crossattention.q_attn", "mlp.c_fc", "mlp.c_proj")
        assert {f"{block}.{name}" for name in expected} <= products
        variants = Bundle.open(quantized_path).manifest.variants.values()
        quantised = next(each for each in variants if each.numerics == "u8-fp32").graphs["language_decoder"]
        assert quantised.nodes["QuantizeLinear"] >= 2 * len(expected)


class TestDeiTGpt2OfAnotherWidth(VisionEncoderDecoderContract):
    """The encoder's states are projected to the decoder's width, and attention is scaled by the layer's number."""

    quantized = False

    @classmethod
    def make(cls, folder: Path) -> None:
        settings: dict[str, Any] = {
            "scale_attn_by_inverse_layer_idx": True,
            "n_inner": 48,
            "activation_function": "relu",
        }
        save(folder, encoder(DeiTConfig, width=16), **settings)


def test_another_decoder_is_an_error_that_names_the_known(tmp_path: Path) -> None:
    bert = BertConfig(
        vocab_size=265,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        is_decoder=True,
        add_cross_attention=True,
    )
    save(tmp_path, encoder(ViTConfig, width=32), bert)
    with pytest.raises(CheckpointError, match=r"has the decoder 'bert'; .* exports gpt2"):
        export(str(tmp_path), tmp_path / "family.bundle", ExportOptions())
