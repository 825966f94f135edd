"""Choose a calibration set: distinct samples, spread over pictures and kinds of question, the same for the same seed."""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePath

import numpy as np

from edgevqa.calibration.observation.picture_checks import Look, look_of
from edgevqa.evaluation.datasets.base import Dataset, Sample
from edgevqa.evaluation.datasets.registry import KINDS
from edgevqa.runtime.caches import picture_key
from edgevqa.runtime.errors import ConfigError, ImageError, InputError, QuestionError
from edgevqa.runtime.images import load_image

FEW = 128
LOOKED_AT = 16  # samples of the data set that are considered for each one that is asked for
LEAST_LOOKED_AT = 4096

Advance = Callable[[int, int], None]
"""Called with samples chosen and samples asked for."""


@dataclass(frozen=True, kw_only=True)
class CalibrationSet:
    """Samples in the order in which they are run, grouped by what their pictures show. No picture is held in memory.

    `sha256` is the hash of the questions' texts and the pictures' contents, in that order.
    """

    dataset: str
    seed: int
    groups: tuple[tuple[Sample, ...], ...]
    sha256: str
    warnings: tuple[str, ...]

    @property
    def samples(self) -> list[Sample]:
        """All samples, in the order in which they are run."""
        return [sample for group in self.groups for sample in group]

    @property
    def question_ids(self) -> list[str]:
        """The data set's names of the samples."""
        return [sample.question_id for sample in self.samples]


def pick_samples(
    dataset: Dataset,
    count: int,
    seed: int,
    *,
    check_question: Callable[[str], object] | None = None,
    words: bool = True,
    advance: Advance | None = None,
) -> CalibrationSet:
    """Choose `count` samples that differ in the question's text or the picture's content; without `words`, in the latter.

    Kinds of question take turns, and of each kind those on pictures of their own come first. Samples whose picture cannot
    be read, or whose question `check_question` refuses, are passed over.
    Raises `InputError` where nothing can be used, all show one picture, or most pictures are noise or blank.
    """
    if count < 1:
        raise ConfigError(f"The number of samples is {count}; expected at least 1.")
    choice = _Choice(check_question, words)
    for sample in _in_turns(_candidates(dataset, count, seed)):
        choice.offer(sample)
        if advance is not None:
            advance(len(choice.taken), count)
        if len(choice.taken) == count:
            break
    choice.refuse_unusable(dataset.spec)
    groups: dict[bytes, list[Sample]] = {}
    for sample, key in choice.taken:
        groups.setdefault(key, []).append(sample)
    return CalibrationSet(
        dataset=dataset.spec,
        seed=seed,
        groups=tuple(tuple(samples) for samples in groups.values()),
        sha256=_hash(groups),
        warnings=tuple(choice.warnings(count)),
    )


def dataset_name(spec: str) -> str:
    """What a bundle calls the data set: its spec, or of files the name without the path, which is this machine's."""
    if spec.partition(":")[0] in KINDS:
        return spec
    return ",".join(PurePath(file).name for file in spec.partition("::")[0].split(","))


def _candidates(dataset: Dataset, count: int, seed: int) -> list[Sample]:
    """Samples in random order; of a very large data set a random part. Pictures are not opened."""
    most = min(len(dataset), max(LOOKED_AT * count, LEAST_LOOKED_AT))
    rng = np.random.default_rng(seed)
    places = np.sort(rng.permutation(len(dataset))[:most])  # in order: neighbours may share what it takes to make them
    found = [dataset[int(place)] for place in places]
    return [found[int(place)] for place in rng.permutation(most)]


def _in_turns(candidates: list[Sample]) -> Iterator[Sample]:
    """One sample of each kind of question after another; among those, first samples of all pictures come first."""
    seen: Counter[str] = Counter()
    ranked: list[tuple[int, Sample]] = []
    for sample in candidates:
        ranked.append((seen[sample.image_id], sample))
        seen[sample.image_id] += 1
    queues: dict[str, deque[Sample]] = {}
    for _, sample in sorted(ranked, key=lambda item: item[0]):
        queues.setdefault(sample.question_type, deque()).append(sample)
    while queues:
        for kind in list(queues):
            yield queues[kind].popleft()
            if not queues[kind]:
                del queues[kind]


@dataclass(kw_only=True)
class _Looked:
    """A picture that was opened: the key of its content, or why it cannot be used."""

    key: bytes
    error: str = ""


@dataclass
class _Choice:
    """What was taken so far, and what was passed over."""

    check_question: Callable[[str], object] | None
    words: bool
    taken: list[tuple[Sample, bytes]] = field(default_factory=list[tuple[Sample, bytes]])
    looks: dict[bytes, Look] = field(default_factory=dict[bytes, Look])  # by the picture's key
    unusable: list[str] = field(default_factory=list[str])
    _pictures: dict[str, _Looked] = field(default_factory=dict[str, _Looked])  # by image id
    _known: set[tuple[str, bytes]] = field(default_factory=set[tuple[str, bytes]])

    def offer(self, sample: Sample) -> None:
        """Take the sample unless it is there already or cannot be used."""
        looked = self._look(sample)
        error = looked.error or self._question_error(sample)
        if error:
            self.unusable.append(f"question {sample.question_id}: {error}")
            return
        identity = (sample.question.strip() if self.words else "", looked.key)
        if identity not in self._known:
            self._known.add(identity)
            self.taken.append((sample, looked.key))

    def refuse_unusable(self, spec: str) -> None:
        """Raise `InputError` that says what was found, unless the samples can be calibrated with."""
        advice = "Calibrate with pictures like those that the model will see."
        if not self.taken:
            first = f" The first: {self.unusable[0]}" if self.unusable else ""
            raise InputError(f"{spec} holds no sample that can be used.{first}")
        pictures = {key for _, key in self.taken}
        if len(pictures) == 1:
            count = len(self.taken)
            others = (
                f" {len(self.unusable)} others cannot be used; the first: {self.unusable[0]}" if self.unusable else ""
            )
            what = "The one sample" if count == 1 else f"All {count} samples"
            same = "that can be used" if count == 1 else "show one and the same picture"
            alone = f"{what} of {spec} {same} is not enough." if count == 1 else f"{what} of {spec} {same}."
            raise InputError(f"{alone}{others} {advice}")
        found = Counter(self.looks[key] for key in pictures)
        if 2 * (found["noise"] + found["blank"]) <= len(pictures):
            return
        if found["noise"] >= found["blank"]:
            raise InputError(
                f"{found['noise']} of {len(pictures)} pictures of {spec} look like random noise: there is no structure "
                f"in them. {advice}"
            )
        raise InputError(f"{found['blank']} of {len(pictures)} pictures of {spec} are blank: all one colour. {advice}")

    def warnings(self, asked: int) -> Iterator[str]:
        """What makes the set weaker than it might be."""
        found, pictures = len(self.taken), {key for _, key in self.taken}
        if found < asked:
            yield f"There are only {found} distinct samples; {asked} were asked for."
        if found < FEW:
            yield f"{found} samples are few: ranges may be too narrow. Use {FEW} or more, better 512."
        questions = {sample.question.strip() for sample, _ in self.taken}
        if self.words and len(questions) == 1 and questions != {""}:  # without words: a classifier, or captions
            yield f"All samples ask the same question: {self.taken[0][0].question!r}."
        for look, what in (("noise", "look like random noise"), ("blank", "are blank")):
            count = sum(self.looks[key] == look for key in pictures)
            if count:
                yield f"{count} of {len(pictures)} pictures {what}."
        if self.unusable:
            yield f"{len(self.unusable)} samples cannot be used and were passed over. The first: {self.unusable[0]}"

    def _look(self, sample: Sample) -> _Looked:
        if sample.image_id not in self._pictures:
            self._pictures[sample.image_id] = self._open(sample)
        return self._pictures[sample.image_id]

    def _open(self, sample: Sample) -> _Looked:
        try:
            rgb = load_image(sample.image)
        except ImageError as error:
            return _Looked(key=b"", error=str(error))
        key = picture_key(rgb)
        if key not in self.looks:
            self.looks[key] = look_of(rgb)
        return _Looked(key=key)

    def _question_error(self, sample: Sample) -> str:
        try:
            if self.check_question is not None:
                self.check_question(sample.question)
        except QuestionError as error:
            return str(error)
        return ""


def _hash(groups: dict[bytes, list[Sample]]) -> str:
    digest = hashlib.sha256()
    for key, samples in groups.items():
        for sample in samples:
            text = sample.question.strip().encode()
            digest.update(len(text).to_bytes(8, "little") + text + key)
    return digest.hexdigest()
