"""Small real tokenizers, of the kinds that the true models have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from edgevqa.export.samples import sample_questions

TEXTS = [f"{sample.question} {sample.answer}" for sample in sample_questions()] + [
    "what color is the ball on the left? how many dogs are there? USER: ASSISTANT: question answer a picture of"
]


def llama_tokenizer(*, special: Sequence[str] = (), vocab_size: int = 300) -> PreTrainedTokenizerFast:
    """Byte-fallback BPE with `▁` for blanks and a leading `<s>`, as Llama's; `special` are further special tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    base = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=len(base) + vocab_size, special_tokens=base, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in ("<s>", "</s>", *special)]
    )
    first = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", first)]
    )
    return _fast(
        tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>", padding_side="left"
    )


def byte_level_tokenizer(*, special: Sequence[str], vocab_size: int = 300, **named: Any) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2's, OPT's and Qwen's; `special` are its special tokens, `named` their roles (`eos_token`)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(special),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return _fast(tokenizer, **named)


def opt_tokenizer(*, special: Sequence[str] = (), vocab_size: int = 300) -> PreTrainedTokenizerFast:
    """Byte-level BPE that begins every text with `</s>`, as OPT's; `special` are further special tokens."""
    base = ["<s>", "<pad>", "</s>", "<unk>"]
    fast = byte_level_tokenizer(
        special=base, vocab_size=vocab_size, bos_token="</s>", eos_token="</s>", unk_token="</s>", pad_token="<pad>"
    )
    fast.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", pair="</s> $A </s> $B", special_tokens=[("</s>", base.index("</s>"))]
    )
    fast.add_special_tokens({"additional_special_tokens": list(special)})
    return fast


def t5_tokenizer(*, special: Sequence[str] = (), vocab_size: int = 260) -> PreTrainedTokenizerFast:
    """Unigram with `▁` for blanks and a closing `</s>`, as T5's; `special` are further special tokens."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    base = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=base, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", base.index("</s>"))]
    )
    fast = _fast(tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="<pad>")
    fast.add_special_tokens({"additional_special_tokens": list(special)})
    return fast


def bert_tokenizer(*, special: Sequence[str] = (), vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """Lower-case WordPiece with [CLS] and [SEP], as BERT's."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    base = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *special]
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=base, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.decoder = decoders.WordPiece()
    ids = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    return _fast(
        tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
    )


def _fast(tokenizer: Tokenizer, **named: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **named)
