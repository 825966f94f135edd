"""Random models of every compared family, of 4 to 6 layers and 256 to 384 wide, saved as the hub has them.

Tokenizers and processors are those that the families' tests make.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.perceiver.image_processing_pil_perceiver import PerceiverImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from tests.families.test_blip import vocabulary
from tests.families.test_qwen2_5_vl import SPECIAL, TEMPLATE
from tests.families.test_vision_encoder_decoder import tokenizer as gpt2_tokenizer
from tests.families.tiny.clip_models import clip_tokenizer
from tests.families.tiny.tokenizers import (
    bert_tokenizer,
    byte_level_tokenizer,
    llama_tokenizer,
    opt_tokenizer,
    t5_tokenizer,
)

SIZE, PATCH, WIDTH, LAYERS, HEADS = 224, 16, 256, 4, 4
QUERIES, ROWS, LABELS = 32, 8000, 1000
SPREAD = 0.06  # of random weights: the usual 0.02 would let errors vanish in outputs near zero
BODY: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "initializer_range": SPREAD,
}
EYE: dict[str, Any] = {**BODY, "image_size": SIZE, "patch_size": PATCH}
SQUARE = {"height": SIZE, "width": SIZE}


def _token(tokenizer: Any, name: str) -> int:
    return int(tokenizer.convert_tokens_to_ids(name))


def _save(folder: Path, model: Any, *others: Any) -> None:
    for part in (model, *others):
        part.save_pretrained(folder)


def _named() -> dict[str, Any]:
    names = [f"label {number}" for number in range(LABELS)]
    return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}


def vit(folder: Path) -> None:
    """384 wide, 6 layers."""
    wider: dict[str, Any] = {
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
    }
    config = transformers.ViTConfig(**{**EYE, **wider, **_named()})
    _save(folder, transformers.ViTForImageClassification(config), ViTImageProcessorPil(size=SQUARE))


def clip(folder: Path) -> None:
    """Both towers."""
    tokenizer = clip_tokenizer()
    ids: dict[str, Any] = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    text = {**BODY, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 77}
    config = transformers.CLIPConfig(text_config=text, vision_config=EYE, projection_dim=WIDTH)
    images = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=SQUARE)
    _save(
        folder, transformers.CLIPModel(config), transformers.CLIPProcessor(image_processor=images, tokenizer=tokenizer)
    )


def vilt(folder: Path) -> None:
    """The head that answers."""
    tokenizer = bert_tokenizer()
    config = transformers.ViltConfig(**EYE, **_named(), vocab_size=len(tokenizer))
    sizes: dict[str, Any] = {"size": {"shortest_edge": SIZE}, "size_divisor": PATCH}
    processor = transformers.ViltProcessor(ViltImageProcessorPil(**sizes), tokenizer)
    _save(folder, transformers.ViltForQuestionAnswering(config), processor)


def perceiver(folder: Path) -> None:
    """Learned positions of pixels, at 56 pixels: its cross-attention reads every one of them."""
    config = transformers.PerceiverConfig(
        num_latents=64,
        d_latents=WIDTH,
        num_blocks=1,
        num_self_attends_per_block=LAYERS,
        num_self_attention_heads=HEADS,
        num_cross_attention_heads=1,
        image_size=56,
        initializer_range=SPREAD,
        **_named(),
    )
    sizes: dict[str, Any] = {"size": {"height": 56, "width": 56}, "crop_size": {"height": 64, "width": 64}}
    model = transformers.PerceiverForImageClassificationLearned(config)
    _save(folder, model, PerceiverImageProcessorPil(**sizes))


def vit_mae(folder: Path) -> None:
    """The encoder alone, which sees a quarter of the patches."""
    _save(folder, transformers.ViTMAEModel(transformers.ViTMAEConfig(**EYE)), ViTImageProcessorPil(size=SQUARE))


def _blip(folder: Path, kind: Any) -> None:
    words = vocabulary()
    text = {
        **BODY,
        "encoder_hidden_size": WIDTH,
        "vocab_size": len(words) + 2,
        "bos_token_id": len(words),
        "sep_token_id": words["[SEP]"],
        "max_position_embeddings": 64,
    }
    config = transformers.BlipConfig(vision_config=EYE, text_config=text, initializer_range=SPREAD)
    tokenizer = transformers.BertTokenizer(vocab=words)
    _save(folder, kind(config), transformers.BlipProcessor(BlipImageProcessorPil(size=SQUARE), tokenizer))


def blip_vqa(folder: Path) -> None:
    """Answers."""
    _blip(folder, transformers.BlipForQuestionAnswering)


def blip_caption(folder: Path) -> None:
    """Captions."""
    _blip(folder, transformers.BlipForConditionalGeneration)


def _language(head: str) -> dict[str, Any]:
    if head == "opt":
        return {"model_type": head, "vocab_size": ROWS, **_decoder(ffn_dim=4 * WIDTH), "word_embed_proj_dim": WIDTH}
    return {
        "model_type": head,
        "vocab_size": ROWS,
        "d_model": WIDTH,
        "d_kv": WIDTH // HEADS,
        "d_ff": 2 * WIDTH,
        "num_layers": LAYERS,
        "num_decoder_layers": LAYERS,
        "num_heads": HEADS,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "decoder_start_token_id": 0,
        "bos_token_id": 1,
    }


def _decoder(**others: Any) -> dict[str, Any]:
    return {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 512,
        **others,
    }


def _queries(vocab_size: int) -> dict[str, Any]:
    return {**BODY, "vocab_size": vocab_size, "encoder_hidden_size": WIDTH, "max_position_embeddings": 128}


def _blip2(folder: Path, head: str) -> None:
    tokenizer = {"opt": opt_tokenizer, "t5": t5_tokenizer}[head](special=["<image>"])
    config = transformers.Blip2Config(
        vision_config=EYE,
        qformer_config=_queries(64),
        text_config=_language(head),
        num_query_tokens=QUERIES,
        image_token_index=tokenizer.get_vocab()["<image>"],
    )
    model = transformers.Blip2ForConditionalGeneration(config)
    torch.nn.init.normal_(model.query_tokens)  # they begin with zeros
    _save(folder, model, tokenizer, BlipImageProcessorPil(size=SQUARE))


def blip2_opt(folder: Path) -> None:
    """With a decoder."""
    _blip2(folder, "opt")


def blip2_t5(folder: Path) -> None:
    """With an encoder-decoder."""
    _blip2(folder, "t5")


def instructblip_t5(folder: Path) -> None:
    """With an encoder-decoder."""
    tokenizer, reader = t5_tokenizer(special=["<image>"]), bert_tokenizer()
    config = transformers.InstructBlipConfig(
        vision_config=EYE,
        qformer_config=_queries(len(reader)),
        text_config=_language("t5"),
        num_query_tokens=QUERIES,
        image_token_index=tokenizer.get_vocab()["<image>"],
    )
    model = transformers.InstructBlipForConditionalGeneration(config)
    torch.nn.init.normal_(model.query_tokens)
    _save(folder, model, tokenizer, BlipImageProcessorPil(size=SQUARE))
    reader.save_pretrained(folder / "qformer_tokenizer")


def llava(folder: Path) -> None:
    """A CLIP tower and a LLaMA with grouped queries."""
    tokenizer = llama_tokenizer(special=["<image>"])
    text = _decoder(intermediate_size=768, num_key_value_heads=2, initializer_range=SPREAD)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**EYE),
        text_config=transformers.LlamaConfig(vocab_size=ROWS, **text),
        image_token_index=_token(tokenizer, "<image>"),
    )
    model = transformers.LlavaForConditionalGeneration(config)
    model.generation_config.pad_token_id = 0
    _save(folder, model, tokenizer, CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=SQUARE))


def qwen2_5_vl(folder: Path) -> None:
    """Window attention in all layers but the last."""
    tokenizer = byte_level_tokenizer(special=SPECIAL, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = TEMPLATE
    ids = {name: tokenizer.get_vocab()[name] for name in SPECIAL}
    config = transformers.Qwen2_5_VLConfig(
        vision_config={
            "depth": LAYERS,
            "hidden_size": WIDTH,
            "intermediate_size": 768,
            "num_heads": HEADS,
            "patch_size": 14,
            "window_size": 112,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [LAYERS - 1],
            "initializer_range": SPREAD,
        },
        text_config={
            **_decoder(intermediate_size=768, num_key_value_heads=2, initializer_range=SPREAD),
            "vocab_size": ROWS,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]},
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    sizes: dict[str, Any] = {"size": {"shortest_edge": 56 * 56, "longest_edge": 448 * 448}}
    _save(folder, model, tokenizer, Qwen2VLImageProcessorPil(**sizes))


def vision_encoder_decoder(folder: Path) -> None:
    """A ViT with a GPT-2."""
    words = gpt2_tokenizer()
    end = words.eos_token_id
    gpt2 = transformers.GPT2Config(
        vocab_size=ROWS,
        n_positions=256,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        bos_token_id=end,
        eos_token_id=end,
        initializer_range=SPREAD,
    )
    kinds: Any = transformers.VisionEncoderDecoderConfig
    config = kinds.from_encoder_decoder_configs(transformers.ViTConfig(**EYE), gpt2)
    config.decoder_start_token_id = config.pad_token_id = end
    model: Any = transformers.VisionEncoderDecoderModel(config)
    for name in ("decoder_start_token_id", "pad_token_id"):
        setattr(model.generation_config, name, end)
    _save(folder, model, ViTImageProcessorPil(size=SQUARE), words)
