"""Draw the README's picture: the packaged pictures with what a bundle answers about them.

python -m benchmarks.readme_picture BUNDLE docs/demo.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from edgevqa.export.samples import PICTURES, sample_questions
from edgevqa.runtime import Pipeline

SIDE, GAP, LINE, TEXT, COLUMNS = 176, 20, 24, 420, 2
QUIET, RIGHT, WRONG, PAPER = "#59636e", "#1a7f37", "#cf222e", "#ffffff"


def main() -> None:
    """Ask and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    asked: dict[str, list[tuple[str, str, str]]] = {}
    with Pipeline.load(arguments.bundle) as pipeline:
        for sample in sample_questions():
            answer = pipeline.answer(PICTURES / sample.image, sample.question)
            asked.setdefault(sample.image, []).append((sample.question, answer.text, sample.answer))
    draw(asked).save(arguments.output, optimize=True)


def draw(asked: dict[str, list[tuple[str, str, str]]]) -> Image.Image:
    """One cell a picture: the picture, and beside it its questions with answers, green where they are right."""
    rows = -(-len(asked) // COLUMNS)
    cell = SIDE + GAP + TEXT
    sheet = Image.new("RGB", (COLUMNS * (cell + GAP) + GAP, rows * (SIDE + GAP) + GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    question_font, answer_font = ImageFont.load_default(15), ImageFont.load_default(16)
    for number, (name, questions) in enumerate(asked.items()):
        row, column = divmod(number, COLUMNS)
        left, top = GAP + column * (cell + GAP), GAP + row * (SIDE + GAP)
        with Image.open(PICTURES / name) as picture:
            shown = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        sheet.paste(shown, (left, top))
        pen.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), outline="#d1d9e0")
        for place, (question, answer, truth) in enumerate(questions):
            y = top + place * (2 * LINE - 4)
            pen.text((left + SIDE + GAP, y), question, fill=QUIET, font=question_font)
            color = RIGHT if answer == truth else WRONG
            pen.text((left + SIDE + GAP, y + LINE - 5), answer, fill=color, font=answer_font)
    return sheet


if __name__ == "__main__":
    main()
