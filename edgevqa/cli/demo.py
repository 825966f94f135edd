"""`edgevqa demo`: the reference model from checkpoint to answers, on the packaged pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgevqa.cli.export import NEEDED, print_exported
from edgevqa.cli.output import print_table, print_text, step_bar
from edgevqa.runtime.errors import require


def demo(
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Where the bundle goes; an earlier one is replaced.")
    ] = Path("edgevqa-demo"),
    fast: Annotated[bool, typer.Option("--fast", help="Leave out the comparison with PyTorch.")] = False,
) -> None:
    """Export the reference model, ask it about pictures, print the answers.

    Example:
      edgevqa demo
    """
    for module in (*NEEDED, "onnxruntime"):
        require(module, extra="cpu,export", purpose="The demo")
    from edgevqa.export.options import ExportOptions
    from edgevqa.export.run import export

    bundle = output / "reference.bundle"
    output.mkdir(parents=True, exist_ok=True)
    print_text(f"1. Export: edgevqa export reference -o {bundle}")
    with step_bar("Exporting") as report:
        exported = export("reference", bundle, ExportOptions(verify=not fast, overwrite=True), report=report)
    print_exported(exported, bundle)
    print_text("\n2. Ask, with ONNX Runtime and without torch:")
    _ask(bundle)
    print_text(f'\nAsk it yourself: edgevqa ask {bundle} PICTURE "QUESTION"')


def _ask(bundle: Path) -> None:
    """Ask every packaged question and say which answers are right."""
    from edgevqa.export.samples import PICTURES, sample_questions
    from edgevqa.runtime import Pipeline

    rows: list[tuple[str, ...]] = []
    wrong = 0
    with Pipeline.load(bundle) as pipeline:
        pipeline.warm_up()
        seen: set[str] = set()
        for sample in sample_questions():
            answer = pipeline.answer(PICTURES / sample.image, sample.question)
            right = answer.text == sample.answer
            wrong += not right
            verdict = "right" if right else f"wrong: {sample.answer}"
            again = "" if sample.image not in seen else "trunk reused"
            seen.add(sample.image)
            total = f"{answer.timing_ms['total']:.1f}"
            rows.append((sample.image, sample.question, answer.text, f"{answer.confidence:.3f}", verdict, total, again))
    print_table(("picture", "question", "answer", ">confidence", "truth", ">ms", ""), rows)
    print_text(f"\n{len(rows) - wrong} of {len(rows)} answers are right.")
