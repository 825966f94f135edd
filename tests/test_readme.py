"""What the README shows works: its commands and its Python run in the order they stand, and print what it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from edgevqa.cli.main import run

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"```(console|python)\n(.*?)```", re.DOTALL)
TIMES = re.compile(r"\d+(\.\d+)? ?(s|ms)\b")


def blocks() -> list[tuple[str, str]]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [(found.group(1), found.group(2)) for found in BLOCK.finditer(text)]


def steps() -> list[tuple[str, str]]:
    """Commands with the output that stands below them; of the shell's commands only ours."""
    found: list[tuple[str, str]] = []
    for kind, text in blocks():
        if kind == "python":
            found.append(("python", text))
            continue
        for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            if command.startswith("edgevqa "):
                found.append((command.partition(" #")[0].strip(), output))
    return found


@pytest.mark.timeout(600)
def test_the_commands_and_the_python_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "export").symlink_to(ROOT / "export")
    monkeypatch.chdir(tmp_path)
    found = steps()
    assert len(found) >= 3
    for command, shown in found:
        capsys.readouterr()
        if command == "python":
            exec(compile(shown, "README.md", "exec"), {"__name__": "readme"})
            assert capsys.readouterr().out.strip()
            continue
        assert run(shlex.split(command)[1:]) == 0, command
        printed = capsys.readouterr().out
        for line in filter(None, map(str.strip, shown.splitlines())):
            if line != "..." and not TIMES.search(line):
                assert line in printed, f"{command} does not print: {line}"


def test_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert links
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []
