"""SentencePiece models of SigLIP as a `tokenizer.json`: transformers has no fast tokenizer for them to take it from."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from edgevqa.export.sources import reason_of, refuse_pointer
from edgevqa.runtime.errors import CheckpointError

NAME = "spiece.model"
_UNIGRAM, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # the file format's numbers


def siglip_tokenizer(folder: Path, *, lower_case: bool = True) -> bytes:
    """A `tokenizer.json` that reads texts as SigLIP's own tokenizer does: without punctuation, and closed with `</s>`.

    Raises `CheckpointError` where `spiece.model` is no Unigram model of SentencePiece.
    """
    path = folder / NAME
    proto = _parse(path)
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    tokenizer = Tokenizer(models.Unigram(pieces, proto.trainer_spec.unk_id, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(_cleaning(proto.normalizer_spec, lower_case))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens([piece.piece for piece in proto.pieces if piece.type in (_UNKNOWN, _CONTROL)])
    tokenizer.add_tokens([piece.piece for piece in proto.pieces if piece.type == _USER_DEFINED])
    end = tokenizer.token_to_id("</s>")
    if end is None:
        raise CheckpointError(f"{path} has no token '</s>', which ends texts. Take the file of the model's page.")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", end)]
    )
    return tokenizer.to_str().encode()


def _parse(path: Path) -> Any:
    from transformers.convert_slow_tokenizer import import_protobuf  # two copies of the format must not be imported

    file_format: Any = import_protobuf()
    proto = file_format.ModelProto()
    refuse_pointer(path)
    try:
        proto.ParseFromString(path.read_bytes())
    except OSError:
        raise
    except Exception as error:  # protobuf's own type, which lies elsewhere in every version
        raise CheckpointError(f"{path} is not a SentencePiece model: {reason_of(error)}.") from error
    if not proto.pieces or proto.trainer_spec.model_type != _UNIGRAM:
        raise CheckpointError(f"{path} is not a Unigram model of SentencePiece, which SigLIP's tokenizer is.")
    return proto


def _cleaning(spec: Any, lower_case: bool) -> list[Any]:
    """What is done to a text before it is cut into pieces, in the order of SigLIP's tokenizer."""
    punctuation = "".join(rf"\{mark}" for mark in string.punctuation)
    steps: list[Any] = [normalizers.Lowercase()] if lower_case else []
    steps += [normalizers.Replace(Regex(f"[{punctuation}]"), "")]
    steps += [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    if spec.precompiled_charsmap:
        steps += [normalizers.Precompiled(spec.precompiled_charsmap)]
    return [*steps, normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
