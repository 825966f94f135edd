"""A process that exports a folder with optimum-onnx, in optimum's own environment: FOLDER OUTPUT TASK."""

import sys

from optimum.exporters.onnx import main_export  # pyright: ignore[reportMissingImports] (of the other environment)


def main() -> None:
    """Export with the defaults, without optimum's own comparison, which takes long and changes nothing."""
    folder, output, task = sys.argv[1:]
    main_export(folder, output=output, task=task, do_validation=False)


if __name__ == "__main__":
    main()
