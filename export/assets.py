"""What stands beside a model's weights: its tokenizer file, its preprocessing, and the special tokens."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, Literal

import msgspec
from tokenizers import Tokenizer

from edgevqa.export.passes import quiet
from edgevqa.export.sources import read_json, reason_of, refuse_pointer, shorten
from edgevqa.runtime.errors import CheckpointError
from edgevqa.runtime.manifest import FileSpec, ImageSpec, Resample, TextSpec

TOKENIZER_NAME, PROCESSOR_NAME = "tokenizer.json", "preprocessor_config.json"
VOCABULARIES = (  # what slow tokenizers are kept in
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
    ("tokenizer.model",),
    ("spiece.model",),
    ("sentencepiece.bpe.model",),
)
LEAST_WORDS = 2  # an invented T5 has the blank alone
_RESAMPLES: tuple[Resample, ...] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's numbers
_UNWRITTEN = FileSpec(path=TOKENIZER_NAME, sha256="", size_bytes=0)


def tokenizer_bytes(folder: Path) -> bytes:
    """The folder's `tokenizer.json`, byte for byte; made from a slow tokenizer's files where there is none.

    Raises `CheckpointError` where there are no such files, or they lead to no tokenizer with a vocabulary.
    """
    path = folder / TOKENIZER_NAME
    if path.is_file():
        refuse_pointer(path)
        data = path.read_bytes()
        _check_tokenizer(data, str(path))
        return data
    found = _vocabulary_files(folder)
    tokenizer = load_tokenizer(folder)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            tokenizer.save_pretrained(scratch)
            data = Path(scratch, TOKENIZER_NAME).read_bytes()
    except Exception as error:  # transformers writes what it made of the files
        raise CheckpointError(
            f"{folder} has no {TOKENIZER_NAME}, and none could be made from {found}{_why(error)}. "
            f"Copy {TOKENIZER_NAME} from the model's page."
        ) from error
    _check_tokenizer(data, f"What transformers makes of {found} in {folder}")
    return data


def load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer as transformers has it, from its own files and code alone. Raises `CheckpointError`."""
    from transformers import AutoTokenizer

    path = folder / "tokenizer_config.json"
    settings = read_json(path, what="it says which tokenizer it is") if path.is_file() else {}
    try:
        with quiet("transformers"):
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers' own, the binding's, and whatever the files' values lead to
        refuse_custom_code(path, settings, "AutoTokenizer")
        raise CheckpointError(
            f"The tokenizer of {folder} cannot be loaded{_why(error)}. Copy {TOKENIZER_NAME} and tokenizer_config.json from "
            "the model's page."
        ) from error


def _why(error: Exception) -> str:
    """The reason, but for advice to install what other kinds of tokenizers would need."""
    reason = reason_of(error)
    return "" if "install" in reason or "instantiate" in reason else f" ({reason})"


def refuse_custom_code(path: Path, settings: dict[str, Any], what: str) -> None:
    """Raises `CheckpointError` where a file names a class of the checkpoint's own code, and transformers has none for it."""
    table = settings.get("auto_map")
    if isinstance(table, dict) and table.get(what):
        raise CheckpointError(
            f"{path} asks for code of the checkpoint's own ({shorten(str(table[what]))}), which is not run. "
            "Use a checkpoint that transformers loads without it."
        )


def read_tokenizer(tokenizer: bytes, where: str = f"The model's {TOKENIZER_NAME}") -> Tokenizer:
    """The tokenizer in the bytes of its file. Raises `CheckpointError` with `where` it is from."""
    try:
        return Tokenizer.from_str(tokenizer.decode("utf-8"))
    except Exception as error:  # the binding raises bare Exception
        raise CheckpointError(
            f"{where} is not a tokenizer file ({reason_of(error)}). Copy it again from the model's page."
        ) from error


def _check_tokenizer(tokenizer: bytes, where: str) -> None:
    """Raises `CheckpointError` for bytes that are none, or have no words: transformers invents one where files are missing."""
    loaded = read_tokenizer(tokenizer, where)
    added = {token.content for token in loaded.get_added_tokens_decoder().values()}
    words = [name for name in loaded.get_vocab(with_added_tokens=False) if name not in added]
    if sum(not name.startswith("<extra_id_") for name in words) < LEAST_WORDS:
        raise CheckpointError(f"{where} has an empty vocabulary. Copy it again from the model's page.")


def _vocabulary_files(folder: Path) -> str:
    """The names of the files that hold a slow tokenizer's vocabulary. Raises `CheckpointError` where there are none."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} does not exist; expected a folder with {TOKENIZER_NAME}. Copy it there.")
    for names in VOCABULARIES:
        if all((folder / name).is_file() for name in names):
            for name in names:
                refuse_pointer(folder / name)
            return " and ".join(names)
    known = ", ".join(" with ".join(names) for names in VOCABULARIES)
    raise CheckpointError(
        f"{folder} has no {TOKENIZER_NAME}, and no vocabulary to make it from; expected {TOKENIZER_NAME} or one of {known}. "
        "Copy the tokenizer's files from the model's page."
    )


def tidies_answers(folder: Path, tokenizer: bytes) -> bool:
    """Whether transformers drops the blanks before punctuation when it decodes with the folder's tokenizer.

    It does where `tokenizer_config.json` asks for it, but not for byte pair encoding, whose blanks are the text's own.
    """
    path = folder / "tokenizer_config.json"
    asked = read_json(path, what="it says how the tokenizer decodes") if path.is_file() else {}
    kind = (json.loads(tokenizer).get("model") or {}).get("type")
    return bool(asked.get("clean_up_tokenization_spaces", False)) and kind != "BPE"


class ClipProcessor(msgspec.Struct, frozen=True):
    """What a CLIP `preprocessor_config.json` says; absent keys take the defaults of transformers' CLIP processor."""

    image_processor_type: str = "CLIPImageProcessor"
    feature_extractor_type: str = "CLIPFeatureExtractor"
    do_resize: bool = True
    size: int | dict[str, int] = 224
    resample: int = 3
    do_center_crop: bool = True
    crop_size: int | dict[str, int] = 224
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        for name in (self.image_processor_type, self.feature_extractor_type):
            if not name.startswith("CLIP"):
                raise ValueError(f"it is for {name}, expected a CLIP processor")
        if not 0 <= self.resample < len(_RESAMPLES):
            raise ValueError(
                f"resample is {self.resample}, expected one of Pillow's filters, 0 to {len(_RESAMPLES) - 1}"
            )


def image_spec(folder: Path, *, size: int) -> ImageSpec:
    """The folder's CLIP `preprocessor_config.json`, in its older (integers) or newer form; `size` is the model's, in pixels.

    Raises `CheckpointError` when the file is missing, of another processor, or does not lead to `size`.
    """
    path = folder / PROCESSOR_NAME
    raw = read_json(path, what="it says how pictures are prepared for the vision model")
    try:
        processor = msgspec.convert(raw.get("image_processor", raw), ClipProcessor)
        crop = _square(processor.crop_size, "crop_size") if processor.do_center_crop else None
        resize = _resize(processor.size) if processor.do_resize else None
    except (msgspec.ValidationError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be used: {error}.") from error
    final = crop or resize
    if final != {"height": size, "width": size}:
        raise CheckpointError(
            f"{path} makes pictures of {final or 'any size'}; the model takes {size} x {size} pixels."
        )
    return ImageSpec(
        height=size,
        width=size,
        resize=resize,
        resample=_RESAMPLES[processor.resample],
        crop=crop,
        rescale_factor=processor.rescale_factor if processor.do_rescale else None,
        mean=list(processor.image_mean) if processor.do_normalize else None,
        std=list(processor.image_std) if processor.do_normalize else None,
    )


def _resize(value: int | dict[str, int]) -> dict[str, int]:
    if isinstance(value, int):
        return {"shortest_edge": value}
    return dict(value) if set(value) == {"shortest_edge"} else _square(value, "size")


def _square(value: int | dict[str, int], name: str) -> dict[str, int]:
    if isinstance(value, int):
        return {"height": value, "width": value}
    if set(value) != {"height", "width"}:
        raise ValueError(f"{name} has the keys {sorted(value)}, expected height and width")
    return dict(value)


def text_spec(
    tokenizer: bytes,
    *,
    cleaning: Literal["none", "qavit_question"],
    max_tokens: int,
    pad_token_id: int,
    eos_token_id: int | None,
    vocab_size: int,
    **others: Any,
) -> TextSpec:
    """How questions become ids. Special ids are those the tokenizer marks, `<extra_id_N>`, and ids past its own vocabulary.

    `others` are further fields of `TextSpec`, such as `template`.

    Raises `CheckpointError` when the tokenizer makes ids that the model's table does not have.
    """
    loaded = read_tokenizer(tokenizer)
    vocabulary = loaded.get_vocab(with_added_tokens=True)
    if (highest := max(vocabulary.values(), default=0)) >= vocab_size:
        raise CheckpointError(
            f"The tokenizer's highest id is {highest}; the model's vocabulary has {vocab_size} entries."
        )
    added = json.loads(tokenizer).get("added_tokens", [])
    special = {entry["id"] for entry in added if entry.get("special")} | {pad_token_id}
    special |= set() if eos_token_id is None else {eos_token_id}
    special |= {vocabulary[name] for name in ("<pad>", "</s>", "<unk>") if name in vocabulary}
    special |= {index for name, index in vocabulary.items() if name.startswith("<extra_id_")}
    special |= set(range(vocab_size)) - set(vocabulary.values())
    return TextSpec(
        tokenizer=_UNWRITTEN,
        cleaning=cleaning,
        max_tokens=max_tokens,
        pad_token_id=pad_token_id,
        eos_token_id=eos_token_id,
        special_token_ids=sorted(special),
        **others,
    )


def token_of(tokenizer: bytes, token_id: int) -> str:
    """How the tokenizer writes a token. Raises `CheckpointError` for an id that it does not have."""
    token = read_tokenizer(tokenizer).id_to_token(token_id)
    if token is None:
        raise CheckpointError(
            f"The model's configuration names the token {token_id}, which its tokenizer does not have."
        )
    return str(token)
