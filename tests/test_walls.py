"""The walls between the rooms, held by reading the source: directions, circles, prints, asserts, sizes, names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "edgevqa"

# What a room may import besides itself.
BELOW: dict[str, set[str]] = {
    "runtime": set(),
    "evaluation": {"runtime"},
    "models": {"runtime"},
    "calibration": {"evaluation", "runtime"},
    "export": {"calibration", "evaluation", "models", "runtime"},
    "cli": {"calibration", "evaluation", "export", "models", "runtime"},
}
HEAVY_IN_RUNTIME = {
    "torch",
    "torchvision",
    "transformers",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "optimum",
    "safetensors",
    "typer",
    "rich",
}
DEPENDENCIES = {
    "cuda",
    "easy_vqa",
    "jinja2",
    "msgspec",
    "numpy",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "optimum",
    "pil",
    "platformdirs",
    "safetensors",
    "tensorrt",
    "tensorrt_rtx",
    "tokenizers",
    "torch",
    "transformers",
    "typer",
    "yaml",
}
MOST_FILE_LINES = 400
MOST_FUNCTION_LINES = 50


def sources(room: str) -> list[Path]:
    """Every Python file of a room, found through its link."""
    return sorted(file for file in (PACKAGE / room).resolve().rglob("*.py") if "__pycache__" not in file.parts)


def module_name(room: str, file: Path) -> str:
    parts = file.relative_to((PACKAGE / room).resolve()).with_suffix("").parts
    return ".".join(("edgevqa", room, *(part for part in parts if part != "__init__")))


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


@cache
def modules() -> dict[str, Path]:
    found = {module_name(room, file): file for room in BELOW for file in sources(room)}
    return {"edgevqa": PACKAGE / "__init__.py", **found}


def imported(nodes: Iterator[ast.AST]) -> Iterator[tuple[str, int]]:
    """The modules that the statements import, with line numbers; `from package import module` names the module."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield (full if full in modules() else base, node.lineno)


def executed_at_import(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Statements that run when a module is imported: not those in functions or under `if TYPE_CHECKING`."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(statement.test):
            yield from executed_at_import(statement.orelse)
        elif not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for field in ("body", "orelse", "handlers", "finalbody"):
                yield from executed_at_import(getattr(statement, field, []))


def found(room: str, file: Path, line: int, what: str) -> str:
    return f"{room}/{file.relative_to((PACKAGE / room).resolve())}:{line}: {what}"


def test_every_link_leads_to_its_room() -> None:
    links = {link.name: link.readlink().as_posix() for link in PACKAGE.iterdir() if link.is_symlink()}
    assert links == {room: f"../{room}" for room in BELOW if room != "cli"}


@pytest.mark.parametrize("room", BELOW)
def test_a_room_has_sources(room: str) -> None:
    """The tests below would pass on an empty room."""
    assert (PACKAGE / room).resolve() / "__init__.py" in sources(room)


@pytest.mark.parametrize("room", BELOW)
def test_imports_go_down_only(room: str) -> None:
    allowed = {"edgevqa", f"edgevqa.{room}", *(f"edgevqa.{below}" for below in BELOW[room])}
    wrong = [
        found(room, file, line, f"imports {name}")
        for file in sources(room)
        for name, line in imported(ast.walk(parsed(file)))
        if name.partition(".")[0] == "edgevqa" and ".".join(name.split(".")[:2]) not in allowed
    ]
    assert not wrong, f"a room imports only rooms below it ({sorted(allowed)}):\n" + "\n".join(wrong)


@pytest.mark.parametrize("room", BELOW)
def test_imports_name_no_generic_top_level_package(room: str) -> None:
    wrong = [
        found(room, file, line, f"imports {name}; write edgevqa.{name}")
        for file in sources(room)
        for name, line in imported(ast.walk(parsed(file)))
        if name.partition(".")[0] in BELOW
    ]
    assert not wrong, "\n".join(wrong)


def test_no_circle_of_imports() -> None:
    edges = {
        name: {target for target, _ in imported(executed_at_import(parsed(file).body)) if target in modules()} - {name}
        for name, file in modules().items()
    }
    finished: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, "a circle of imports: " + " -> ".join((*path[path.index(name) :], name))
        if name not in finished:
            for target in sorted(edges[name]):
                visit(target, (*path, name))
            finished.add(name)

    for name in edges:
        visit(name, ())


def test_runtime_names_no_heavy_package() -> None:
    """Not even lazily: what only exporting needs has no place in the runtime."""
    wrong = [
        found("runtime", file, line, f"imports {name}")
        for file in sources("runtime")
        for name, line in imported(ast.walk(parsed(file)))
        if name.partition(".")[0] in HEAVY_IN_RUNTIME
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("room", [room for room in BELOW if room != "cli"])
def test_only_the_command_line_prints(room: str) -> None:
    wrong = [
        found(room, file, node.lineno, "print")
        for file in sources(room)
        for node in ast.walk(parsed(file))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("room", BELOW)
def test_no_bare_except_and_no_assert(room: str) -> None:
    wrong = [
        found(room, file, node.lineno, type(node).__name__)
        for file in sources(room)
        for node in ast.walk(parsed(file))
        if isinstance(node, ast.Assert) or (isinstance(node, ast.ExceptHandler) and node.type is None)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("room", BELOW)
def test_a_file_says_its_job_on_its_first_line(room: str) -> None:
    wrong = [
        found(room, file, 1, "no docstring")
        for file in sources(room)
        if not file.read_text(encoding="utf-8").startswith('"""')
    ]
    assert not wrong, "\n".join(wrong)


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's body without its docstring; a command's options are a declaration, however many."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (function.end_lineno or function.lineno) - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("room", BELOW)
def test_files_and_functions_stay_small(room: str) -> None:
    wrong: list[str] = []
    for file in sources(room):
        lines = len(file.read_text(encoding="utf-8").splitlines())
        if lines > MOST_FILE_LINES:
            wrong.append(found(room, file, lines, f"more than {MOST_FILE_LINES} lines"))
        for node in ast.walk(parsed(file)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = code_lines(node)
                if length > MOST_FUNCTION_LINES:
                    wrong.append(found(room, file, node.lineno, f"{node.name} has {length} lines"))
    assert not wrong, f"at most {MOST_FILE_LINES} lines a file, {MOST_FUNCTION_LINES} a function:\n" + "\n".join(wrong)


@pytest.mark.parametrize("room", BELOW)
def test_no_module_bears_the_name_of_a_dependency(room: str) -> None:
    names = {file: file.parent.name if file.name == "__init__.py" else file.stem for file in sources(room)}
    wrong = [found(room, file, 1, f"{name} is a package") for file, name in names.items() if name in DEPENDENCIES]
    assert not wrong, "\n".join(wrong)
