"""An answer that is read piece by piece while it is generated."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from edgevqa.runtime.errors import EdgeVQAError
from edgevqa.runtime.pipelines.base import Answer, Outcome


class AnswerStream(Iterator[str]):
    """Pieces of an answer's text as they are generated; `answer` is the whole one."""

    def __init__(
        self,
        outcomes: Iterator[Outcome],
        decode: Callable[[Outcome], str],
        finish: Callable[[Outcome], Answer],
    ) -> None:
        """Use `Pipeline.stream`."""
        self._outcomes = outcomes
        self._decode = decode  # what was found so far into the text that no further token can change
        self._finish = finish
        self._sent = ""
        self._last: Outcome | None = None
        self._answer: Answer | None = None
        self._error: BaseException | None = None

    def __next__(self) -> str:
        """The next piece. No token can change a piece that was given. What stopped a stream is raised each time."""
        if self._error is not None:
            raise self._error
        try:
            return self._next()
        except StopIteration:
            raise
        except BaseException as error:
            self._error = error
            raise

    @property
    def answer(self) -> Answer:
        """The whole answer; what was not iterated yet is generated first. Raises what stopped the stream."""
        for _ in self:
            pass
        return self._end()

    def _next(self) -> str:
        while self._answer is None:
            outcome = next(self._outcomes, None)
            if outcome is None:
                piece = self._new_part(self._end().text)
            else:
                self._last = outcome
                piece = "" if outcome.choices else self._new_part(self._decode(outcome))
            if piece:
                return piece
        raise StopIteration

    def _end(self) -> Answer:
        if self._answer is None:
            if self._last is None:
                raise EdgeVQAError("The stream ended before the first token. Ask again.")
            self._answer = self._finish(self._last)
        return self._answer

    def _new_part(self, text: str) -> str:
        part = text[len(self._sent) :]
        self._sent += part
        return part
