"""Planning of device memory, without a device: sizes that recur, aligned slices, and lists of blocks to use again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

ALIGNMENT = 256
"""What TensorRT asks of every tensor's address."""


def block_bytes(size: int) -> int:
    """The size to allocate for `size` bytes: a step of an eighth of its power of two, so that sizes recur.

    At most an eighth is wasted (and at least `ALIGNMENT` bytes are taken).
    """
    step = max(ALIGNMENT, 1 << max(0, size.bit_length() - 4))
    return max(1, -(-size // step)) * step


def aligned(size: int) -> int:
    """`size` rounded up to the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def slices(sizes: Iterable[int]) -> tuple[list[int], int]:
    """Aligned offsets of parts that lie one behind the other, and the bytes of all."""
    offsets: list[int] = []
    total = 0
    for size in sizes:
        offsets.append(total)
        total += aligned(size)
    return offsets, total


class FreeBlocks:
    """Addresses of blocks that nobody uses, by size; what was put in longest ago leaves first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.size_bytes = 0
        self._blocks: OrderedDict[int, int] = OrderedDict()  # address: size

    def take(self, size: int) -> int | None:
        """The address of the block of exactly `size` bytes that was put in last, or None."""
        for address in reversed(self._blocks):
            if self._blocks[address] == size:
                del self._blocks[address]
                self.size_bytes -= size
                return address
        return None

    def put(self, address: int, size: int) -> list[int]:
        """Keep a block; returns the addresses of those to free instead, until the bound holds."""
        self._blocks[address] = size
        self.size_bytes += size
        dropped: list[int] = []
        while self.size_bytes > self.max_bytes:
            oldest, oldest_size = self._blocks.popitem(last=False)
            self.size_bytes -= oldest_size
            dropped.append(oldest)
        return dropped

    def clear(self) -> list[int]:
        """Forget all blocks; returns their addresses."""
        addresses = list(self._blocks)
        self._blocks.clear()
        self.size_bytes = 0
        return addresses
