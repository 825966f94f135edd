"""Conditions such as `int8.accuracy < fp32.accuracy - 0.5`, read safely and checked against the rows of a comparison."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, TypeAlias

import msgspec

from edgevqa.evaluation.rows import identifier
from edgevqa.runtime.errors import InputError

Value: TypeAlias = "float | bool"

_ARITHMETIC: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_COMPARISONS: dict[type[ast.cmpop], tuple[str, Callable[[float, float], bool]]] = {
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
    ast.Eq: ("==", operator.eq),
    ast.NotEq: ("!=", operator.ne),
}
_ROW = "row"
_EXAMPLE = "int8.accuracy < fp32.accuracy - 0.5"
_LONGEST = 1000


@dataclass(frozen=True)
class RowKey:
    """What tells a row from others. `usual` says whether its variant is what its precision means."""

    bundle: str
    precision: str
    variant: str
    backend: str
    usual: bool = field(default=True, compare=False)

    @property
    def names(self) -> tuple[str, ...]:
        """What a condition may call it, as it is printed."""
        return tuple(dict.fromkeys((self.precision, self.variant)))


@dataclass(frozen=True)
class Reference:
    """One figure that a condition names; `backend` and `bundle` are None where it leaves them open."""

    text: str
    name: str
    field: str
    backend: str | None = None
    bundle: str | None = None


class GateResult(msgspec.Struct, frozen=True, kw_only=True):
    """One condition for one bundle and backend: whether it holds (which fails the comparison), and the figures."""

    condition: str
    where: str
    holds: bool
    values: dict[str, float]
    comparisons: list[str]

    @property
    def message(self) -> str:
        """What holds, with both sides' values."""
        figures = ", ".join(f"{name} = {value:.6g}" for name, value in self.values.items())
        return f'"{self.condition}" holds{self.where}: {"; ".join(self.comparisons)} ({figures}).'


class Gate:
    """One condition, parsed; nothing in it can do anything but compare figures."""

    def __init__(self, text: str, keys: Sequence[RowKey] = ()) -> None:
        """`keys` are the rows that `text` may name as they are printed, with hyphens.

        Raises `InputError` that says what in `text` is not understood.
        """
        self.text = text
        self._rows = _told_names(keys)
        if len(text) > _LONGEST:
            raise InputError(f"The condition has {len(text):,} characters; expected at most {_LONGEST:,}.")
        try:
            self._body = ast.parse(_as_expression(text, keys).strip(), mode="eval").body
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            raise InputError(
                f'The condition "{text}" cannot be read: {error}. Expected for example: {_EXAMPLE}'
            ) from error
        self.references = list(dict.fromkeys(self._find(self._body)))
        if not isinstance(self._body, (ast.Compare, ast.BoolOp)) and not _is_not(self._body):
            self._refuse(self._body, "is a number, not a condition")
        if not self.references:
            self._refuse(self._body, "names no figure of a row")

    def plan(self, keys: Sequence[RowKey], fields: Mapping[RowKey, set[str]]) -> list[dict[Reference, RowKey]]:
        """Which rows the condition is checked on: one entry a bundle and backend that it leaves open.

        Raises `InputError` naming the known rows or figures where one is unknown or could be several.
        """
        places = list(dict.fromkeys((key.bundle, key.backend) for key in keys))
        bindings: list[dict[Reference, RowKey]] = []
        for bundle, backend in places:
            binding = {ref: self._resolve(ref, keys, bundle, backend) for ref in self.references}
            if binding not in bindings:
                bindings.append(binding)
        for binding in bindings:
            for reference, key in binding.items():
                self._check_field(reference, fields[key])
        return bindings

    def check(
        self, binding: Mapping[Reference, RowKey], figures: Mapping[RowKey, Mapping[str, float | None]], where: str
    ) -> GateResult:
        """Check the condition on the rows it is bound to.

        Raises `InputError` where a figure was not measured: a gate that cannot be checked is not passed.
        """
        values: dict[str, float] = {}
        for reference, key in binding.items():
            found = figures.get(key, {}).get(reference.field)
            if found is None:
                why = "is not known on this machine or for this data" if key in figures else "was not measured"
                raise InputError(
                    f'"{self.text}" cannot be checked: {reference.text} {why} ({key.variant} on {key.backend}).'
                )
            values[reference.text] = found
        told: list[str] = []
        try:
            holds = bool(self._value(self._body, values, told))
        except (ZeroDivisionError, OverflowError) as error:
            raise InputError(f'"{self.text}" cannot be checked: {error} ({values}).') from error
        return GateResult(condition=self.text, where=where, holds=holds, values=values, comparisons=told)

    def _find(self, node: ast.AST) -> Iterator[Reference]:
        """The figures named below a node; everything that is not allowed is refused."""
        if isinstance(node, (ast.Attribute, ast.Name, ast.Call)):
            yield self._reference(node)
        elif isinstance(node, ast.Constant):
            if type(node.value) not in (int, float):
                self._refuse(node, "is no number")
        elif isinstance(node, ast.BoolOp):
            for inner in node.values:
                yield from self._find(inner)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd, ast.Not)):
            yield from self._find(node.operand)
        elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            yield from self._find(node.left)
            yield from self._find(node.right)
        elif isinstance(node, ast.Compare) and all(type(op) in _COMPARISONS for op in node.ops):
            for inner in (node.left, *node.comparators):
                yield from self._find(inner)
        else:
            self._refuse(node, "is not allowed; expected figures, numbers, + - * /, comparisons, and, or, not")

    def _reference(self, node: ast.expr) -> Reference:
        """`int8.latency_ms.next.p50` or `row("int8", "openvino").accuracy`."""
        text, parts = ast.unparse(node), list[str]()
        inner: ast.expr = node
        while isinstance(inner, ast.Attribute):
            parts.append(inner.attr)
            inner = inner.value
        if not parts:
            rows = f". Rows here: {self._rows}" if self._rows else ""
            self._refuse(node, f"names no figure; expected for example int8.accuracy{rows}")
        field = ".".join(reversed(parts))
        if isinstance(inner, ast.Name):
            return Reference(text, inner.id, field)
        if isinstance(inner, ast.Call) and isinstance(inner.func, ast.Name) and inner.func.id == _ROW:
            return self._call(text, inner, field)
        return self._refuse(inner, f'is no row; expected a name, or {_ROW}("int8", "openvino")')

    def _call(self, text: str, call: ast.Call, field: str) -> Reference:
        """`row(PRECISION, BACKEND, BUNDLE)`, the last two optional or by name."""
        given = dict(zip(("precision", "backend", "bundle"), call.args, strict=False))
        given |= {keyword.arg or "": keyword.value for keyword in call.keywords}
        if set(given) - {"precision", "backend", "bundle"} or len(call.args) > 3 or "precision" not in given:
            self._refuse(call, f"has wrong arguments; expected {_ROW}(precision, backend, bundle)")
        texts: dict[str, str] = {}
        for name, value in given.items():
            if not isinstance(value, ast.Constant) or not isinstance(value.value, str):
                self._refuse(call, "has an argument that is no text in quotes")
            texts[name] = str(value.value)
        return Reference(text, texts["precision"], field, texts.get("backend"), texts.get("bundle"))

    def _resolve(self, reference: Reference, keys: Sequence[RowKey], bundle: str, backend: str) -> RowKey:
        """The one row that a reference means; what it leaves open is of this bundle and backend."""
        of_bundle = [key for key in keys if key.bundle == (reference.bundle or bundle)]
        wanted = reference.backend or backend
        called = identifier(reference.name)
        here = [key for key in of_bundle if key.backend == wanted and called in _names(key)]
        anywhere = [key for key in of_bundle if called in _names(key)]
        named = [key for key in of_bundle if called in {f"{name}_{identifier(key.backend)}" for name in _names(key)}]
        found = here or ([] if reference.backend else named or anywhere)
        usual = [key for key in found if key.usual]
        if len(found) == 1 or len(usual) == 1:
            return (found if len(found) == 1 else usual)[0]
        if found:
            several = ", ".join(key.variant for key in found)
            raise InputError(f'In "{self.text}", {reference.text} could be {several}: name the variant.')
        rows = _told_names(keys)
        places = ", ".join(dict.fromkeys(f"{key.backend} ({key.bundle})" for key in keys))
        raise InputError(
            f'In "{self.text}", {reference.text} names no row of this comparison. Rows: {rows}; on {places}.'
        )

    def _check_field(self, reference: Reference, known: set[str]) -> None:
        if reference.field not in known:
            near = [name for name in sorted(known) if name.startswith(f"{reference.field}.")]
            raise InputError(
                f"In \"{self.text}\", {reference.text}: there is no figure '{reference.field}' for this data. "
                f"Known: {', '.join(near or sorted(known))}."
            )

    def _value(self, node: ast.AST, values: Mapping[str, float], told: list[str]) -> Value:
        if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
            return node.value
        if isinstance(node, ast.BoolOp):
            parts = [bool(self._value(inner, values, told)) for inner in node.values]
            return all(parts) if isinstance(node.op, ast.And) else any(parts)
        if isinstance(node, ast.UnaryOp):
            inner = self._value(node.operand, values, told)
            if isinstance(node.op, ast.Not):
                return not inner
            return -inner if isinstance(node.op, ast.USub) else inner
        if isinstance(node, ast.BinOp):
            left, right = self._value(node.left, values, told), self._value(node.right, values, told)
            return _ARITHMETIC[type(node.op)](left, right)
        if isinstance(node, ast.Compare):
            return self._compare(node, values, told)
        return values[ast.unparse(node)]

    def _compare(self, node: ast.Compare, values: Mapping[str, float], told: list[str]) -> bool:
        """A chain of comparisons; each that holds is told with both sides."""
        sides = [self._value(each, values, told) for each in (node.left, *node.comparators)]
        result = True
        for left, op, right in zip(sides, node.ops, sides[1:], strict=False):
            sign, compare = _COMPARISONS[type(op)]
            held = compare(left, right)
            told.append(f"{left:.6g} {sign} {right:.6g}" if held else f"not {left:.6g} {sign} {right:.6g}")
            result = result and held
        return result

    def _refuse(self, node: ast.AST, why: str) -> NoReturn:
        raise InputError(f'In the condition "{self.text}", "{ast.unparse(node)}" {why}. Example: {_EXAMPLE}')


def _names(key: RowKey) -> set[str]:
    return {identifier(name) for name in key.names}


def _told_names(keys: Sequence[RowKey]) -> str:
    return ", ".join(dict.fromkeys(name for key in keys for name in key.names))


def _as_expression(text: str, keys: Sequence[RowKey]) -> str:
    """`text` with rows' printed names as identifiers; every other hyphen stays a minus, and quoted text as it is."""
    plain = {name for key in keys for name in key.names}
    joined = {f"{name}{sign}{key.backend}" for key in keys for name in key.names for sign in "-_"}
    longest_first = sorted((name for name in plain | joined if identifier(name) != name), key=len, reverse=True)
    if not longest_first:
        return text
    names = "|".join(map(re.escape, longest_first))
    pattern = rf"""(?P<quoted>"[^"]*"|'[^']*')|(?<![\w.])(?:{names})(?=\s*\.)"""
    return re.sub(pattern, lambda found: found[0] if found["quoted"] else identifier(found[0]), text)


def _is_not(node: ast.expr) -> bool:
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
