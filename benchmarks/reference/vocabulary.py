"""Makes the reference model's tokenizer: whole words it was trained on, single characters and bytes for all others."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")  # ids 0, 1, 2 as in T5
WORD_SCORE, CHARACTER_SCORE, BYTE_SCORE = -4.0, -12.0, -16.0


def words_of(texts: Iterable[str]) -> list[str]:
    """Return the distinct words and punctuation marks of the texts, sorted."""
    return sorted({word for text in texts for word in re.findall(r"\w+", text.lower())})


def build_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Return a T5-like Unigram tokenizer: pad 0, </s> 1 (added to every text), unk 2, lower case, byte fallback."""
    pieces = [(token, 0.0) for token in SPECIAL_TOKENS]
    pieces += [(f"<0x{byte:02X}>", BYTE_SCORE) for byte in range(256)]
    characters = ["▁", *string.ascii_lowercase, *string.digits, "?", "'", ",", "-", ".", "/", "&", "%"]
    words = [f"▁{word}" for word in words_of(texts)]
    pieces += [(character, CHARACTER_SCORE) for character in characters if character not in words]
    pieces += [(word, WORD_SCORE) for word in words]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer
