"""Small CLIP and SigLIP checkpoints with random weights, as their processors and models save them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipModel,
)
from transformers.convert_slow_tokenizer import import_protobuf
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.families.tiny.tokenizers import TEXTS

LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {**LAYERS, "image_size": 32, "patch_size": 8, "projection_dim": 24}


def clip_tokenizer() -> CLIPTokenizer:
    """Byte-level BPE whose words end in `</w>`, with CLIP's two special tokens as the highest ids."""
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer = normalizers.Lowercase()
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trained.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=400, end_of_word_suffix="</w>", show_progress=False)
    )
    merges: Any = [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(merge) for merge in merges)]
    pieces = [*dict.fromkeys(pieces), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, merges=merges)


def save_clip(folder: Path, *, legacy: bool) -> None:
    """`legacy` names the end token as the first published configurations do, wrongly."""
    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    text: dict[str, Any] = {
        **LAYERS,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 77,
        "eos_token_id": 2 if legacy else tokenizer.eos_token_id,
        "bos_token_id": 0 if legacy else tokenizer.bos_token_id,
    }
    config = CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
    scattered(CLIPModel(config)).save_pretrained(folder)
    crop = {"height": 32, "width": 32}
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=crop)
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)


def siglip_tokenizer() -> PreTrainedTokenizerFast:
    """Unigram pieces with `▁` for blanks, without capitals and punctuation, closed and padded with `</s>`."""
    special = ["<pad>", "</s>", "<unk>"]
    letters = sorted(set("".join(TEXTS).lower()) | set("abcdefghijklmnopqrstuvwxyz▁"))
    words = sorted({f"▁{word}" for text in TEXTS for word in re.findall("[a-z]+", text.lower())})
    scores = [(piece, 0.0) for piece in special]  # the trainer would order pieces otherwise in every process
    scores += [(word, -4 - number / 100) for number, word in enumerate(words)]
    scores += [(letter, -9 - number / 100) for number, letter in enumerate(letters)]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=2))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), ""),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        pad_token="</s>",
        unk_token="<unk>",
        model_max_length=64,
        clean_up_tokenization_spaces=False,
    )


def siglip2_tokenizer() -> Siglip2Tokenizer:
    """Lower-case BPE with byte fallback, closed with `<eos>` and padded with `<pad>`, as Gemma's for SigLIP 2."""
    trained = Tokenizer(models.BPE(byte_fallback=True))
    trained.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "▁")])
    base = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=len(base) + 150, special_tokens=base, show_progress=False)
    trained.train_from_iterator(TEXTS, trainer)
    model = json.loads(trained.to_str())["model"]
    merges: Any = [tuple(merge) for merge in model["merges"]]
    return Siglip2Tokenizer(
        vocab=model["vocab"], merges=merges, add_eos_token=True, padding_side="right", model_max_length=64
    )


def save_spiece(folder: Path) -> None:
    """Write the pieces of `siglip_tokenizer` as `spiece.model`, in place of the folder's `tokenizer.json`."""
    (folder / "tokenizer.json").unlink(missing_ok=True)
    file_format: Any = import_protobuf()
    proto = file_format.ModelProto()
    for piece, score in json.loads(siglip_tokenizer().backend_tokenizer.to_str())["model"]["vocab"]:
        kind = {"<unk>": 2, "<pad>": 3, "</s>": 3}.get(piece, 1)
        proto.pieces.add(piece=piece, score=score, type=kind)
    proto.trainer_spec.model_type, proto.trainer_spec.unk_id = 1, 2
    proto.normalizer_spec.add_dummy_prefix = True
    (folder / "spiece.model").write_bytes(proto.SerializeToString())


def save_siglip(folder: Path, *, second: bool = False) -> None:
    """`second` has the tokenizer of SigLIP 2."""
    torch.manual_seed(0)
    tokenizer = siglip2_tokenizer() if second else siglip_tokenizer()
    text = {**LAYERS, "vocab_size": len(tokenizer), "max_position_embeddings": 64}
    model = scattered(SiglipModel(SiglipConfig(text_config=text, vision_config=VISION)))
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
        model.logit_bias.fill_(-2.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)


def scattered(model: Any) -> Any:
    """The model with larger weights, so that its embeddings of different inputs lie apart."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1 and "logit" not in name:
                value.copy_(torch.randn_like(value) * 0.2)
    return model
