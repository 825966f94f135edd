"""Make a LLaVA folder of real size with random weights in bfloat16, in the hub's format and names, tensor by tensor.

python -m benchmarks.big_folder FOLDER --shape llava-1.5-7b
"""

from __future__ import annotations

import argparse
import json
import string
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

VOCABULARY = 32064  # Llama's 32000, the picture's token, padding to a multiple of 64
SHARD_BYTES = 5 << 30
STD, EMBEDDING_STD = 0.02, 1.0  # of Linear weights; of embeddings, so that what comes out depends on what goes in


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What `config.json` says of the two models."""

    vision: dict[str, Any]
    text: dict[str, Any]


def _vision(hidden: int, intermediate: int, layers: int, heads: int, sides: tuple[int, int]) -> dict[str, int]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
    return dict(zip(names, (hidden, intermediate, layers, heads, *sides), strict=True))


def _text(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> dict[str, int]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return dict(zip(names, (hidden, intermediate, layers, heads, kv_heads), strict=True))


SHAPES: dict[str, Shape] = {
    "llava-1.5-7b": Shape(vision=_vision(1024, 4096, 24, 16, (336, 14)), text=_text(4096, 11008, 32, 32, 32)),
    "llava-3b": Shape(vision=_vision(1024, 4096, 24, 16, (336, 14)), text=_text(3200, 8640, 26, 32, 32)),
    "llava-1.1b": Shape(vision=_vision(768, 3072, 12, 12, (224, 16)), text=_text(2048, 5632, 22, 32, 4)),
    "llava-0.4b": Shape(vision=_vision(768, 3072, 12, 12, (224, 16)), text=_text(1024, 2816, 20, 16, 16)),
    "wide-0.4b": Shape(
        vision=_vision(32, 64, 2, 4, (32, 8)), text=_text(2048, 16384, 2, 16, 16)
    ),  # few and large tensors, soon traced
}


def write(folder: Path, shape: str, *, seed: int = 0) -> Path:
    """Write the folder of a shape of `SHAPES`; the memory of one tensor is needed."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**SHAPES[shape].vision),
        text_config=LlamaConfig(
            vocab_size=VOCABULARY, max_position_embeddings=4096, rms_norm_eps=1e-5, **SHAPES[shape].text
        ),
        image_token_index=int(tokenizer.convert_tokens_to_ids("<image>")),  # type: ignore[arg-type]
        dtype="bfloat16",
    )
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = SHAPES[shape].vision["image_size"]
    processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    processor.save_pretrained(folder)
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    shapes = {hub_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    torch.manual_seed(seed)
    _write_weights(folder, shapes)
    return folder


def hub_name(name: str) -> str:
    """The name that the published LLaVA-1.5 folders have for a parameter."""
    for new, old in (
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    ):
        if name.startswith(new):
            rest = name.removeprefix(new)
            return old + (rest.removeprefix("vision_model.") if "vision" in new else rest)
    return name


def _write_weights(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Shards in the safetensors format: a length, a header as JSON, the tensors' bytes."""
    shards = list(_shards(shapes))
    index: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in names:
            start, end = end, end + _size(shapes[name])
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [start, end]}
            index[name] = file
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / file).open("wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            for name in names:
                stream.write(_random(name, shapes[name]).view(torch.uint8).numpy().data)
    total = sum(_size(shape) for shape in shapes.values())
    written = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(written), encoding="utf-8")


def _shards(shapes: dict[str, tuple[int, ...]]) -> Iterator[list[str]]:
    names: list[str] = []
    for name, shape in shapes.items():
        if names and sum(_size(shapes[each]) for each in names) + _size(shape) > SHARD_BYTES:
            yield names
            names = []
        names.append(name)
    yield names


def _size(shape: tuple[int, ...]) -> int:
    return 2 * int(torch.Size(shape).numel())


def _random(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    made = torch.empty(torch.Size(shape).numel(), dtype=torch.bfloat16)
    if "norm" in name and name.endswith("weight"):
        return made.fill_(1)
    if name.endswith("bias"):
        return made.zero_()
    return made.normal_(0, EMBEDDING_STD if "embed_tokens" in name else STD)


def _tokenizer() -> PreTrainedTokenizerFast:
    """As many pieces as Llama has: bytes, letters, and invented words."""
    letters = (string.ascii_letters, string.digits, string.punctuation)
    base = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"".join(letters)]
    words = [f"w{number}" for number in range(32000 - len(base))]
    vocabulary = {piece: number for number, piece in enumerate((*base, *words))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in ("<s>", "</s>", "<image>")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        padding_side="left",
    )


def main() -> None:
    """Write the folder that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="llava-1.5-7b")
    arguments = parser.parse_args()
    write(arguments.folder, arguments.shape)


if __name__ == "__main__":
    main()
