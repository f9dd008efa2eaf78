"""From counts to windows: how a device's layers are dealt out over the rounds of a ring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edged.planning.plan import Hop


@dataclass(frozen=True, slots=True)
class Deal:
    """What one device does in a ring of k rounds: layers in all, of them on the GPU, streamed, buffered.

    Of the head these are the layers outside its last window, which closes the ring; that one is on the GPU
    or not as a whole (`closing_gpu`) and never streamed.
    """

    layers: int
    gpu: int = 0
    streamed: int = 0
    read_ahead: int = 0
    closing_gpu: bool = False


def spread(total: int, rooms: Sequence[int]) -> tuple[int, ...]:
    """`total` dealt out over places with so much room each, as evenly as can be, the first ones first."""
    assert total <= sum(rooms)
    each, more = divmod(total, max(1, len(rooms)))
    even = tuple(each + (i < more) for i in range(len(rooms)))
    if all(part <= room for part, room in zip(even, rooms, strict=True)):
        return even
    given = [0] * len(rooms)
    for _ in range(total):
        at = min((i for i in range(len(rooms)) if given[i] < rooms[i]), key=lambda i: given[i])
        given[at] += 1
    return tuple(given)


def hops_of_windows(device: str, windows: Sequence[tuple[int, int]], deal: Deal) -> tuple[Hop, ...]:
    """The hops of one device with `deal` over `windows`; a closing window is not among them."""
    sizes = [last - first for first, last in windows]
    on_cpu = spread(sum(sizes) - deal.gpu, sizes)
    streamed = spread(deal.streamed, on_cpu)
    return tuple(
        Hop(
            device=device,
            first=first,
            last=last,
            gpu_layers=size - cpu,
            streamed=from_disk,
            read_ahead=deal.read_ahead if from_disk else 0,
        )
        for (first, last), size, cpu, from_disk in zip(windows, sizes, on_cpu, streamed, strict=True)
    )


def ring_windows(
    order: Sequence[str], layers: Sequence[int], rounds: int, closing: int, n_layers: int
) -> tuple[list[tuple[str, int, int]], tuple[int, int]]:
    """(device, first, last) of every window in ring order, and the closing window.

    order: devices, the head first.  layers: of each, `rounds` at least, the head's without the `closing`.
    """
    shares = [spread(n, [n_layers] * rounds) for n in layers]
    at, windows = 0, []
    for turn in range(rounds):
        for device, share in zip(order, shares, strict=True):
            windows.append((device, at, at + share[turn]))
            at += share[turn]
    assert at + closing == n_layers
    return windows, (at, n_layers)
