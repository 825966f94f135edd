"""The device's own bounds: the rate of large matrix products, and of copying.

python -m benchmarks.gpu_parts.roofline cuda|cpu ROOFLINE.json
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch

from benchmarks.gpu_parts.figures import Roofline

WARM_UP, RUNS = 3, 20


def main() -> None:
    """Measure, with sizes that fill a GPU, or small ones on a CPU; write."""
    device = sys.argv[1]
    sizes = (8192, 1000) if device == "cuda" else (512, 16)
    found = measure_roofline(device, size=sizes[0], copied_mb=sizes[1])
    Path(sys.argv[2]).write_bytes(msgspec.json.encode(found))


def measure_roofline(device: str, *, size: int, copied_mb: int) -> Roofline:
    """The median rate of `size` x `size` products (FP16 on a GPU, FP32 on a CPU), and of copying `copied_mb`."""
    dtype = torch.float16 if device == "cuda" else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)
    seconds = median_s(lambda: torch.mm(left, right, out=out), device)
    source = torch.zeros(copied_mb * 1_000_000, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copying = median_s(lambda: target.copy_(source), device)
    return Roofline(
        device=torch.cuda.get_device_name() if device == "cuda" else "cpu",
        dtype=str(dtype).removeprefix("torch."),
        matmul_size=size,
        matmul_tflops=2.0 * size**3 / seconds / 1e12,
        copy_gb_per_s=2.0 * source.numel() / copying / 1e9,
    )


def median_s(work: Callable[[], object], device: str) -> float:
    """The median seconds of one call, the device waited for."""
    times: list[float] = []
    for _ in range(WARM_UP + RUNS):
        started = time.perf_counter()
        work()
        synchronise(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[WARM_UP:])


def synchronise(device: str) -> None:
    """Wait for what the device was given."""
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
