"""From counts to windows: how a device's layers are dealt out over the rounds of a ring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edged.planning.device_costs import DeviceCosts, ModelCosts
from edged.planning.plan import Hop
from edged.planning.streamed import READ_AHEAD


@dataclass(frozen=True, slots=True)
class Closing:
    """Where the head has the window that closes the ring: in RAM, unless all of it is elsewhere."""

    gpu: bool = False
    streamed: bool = False
    output: bool = False  # whether the output matrix is read anew for every token

    def hop(self, device: str, first: int, last: int) -> Hop:
        layers = last - first
        return Hop(
            device=device,
            first=first,
            last=last,
            gpu_layers=layers if self.gpu else 0,
            streamed=layers if self.streamed else 0,
            read_ahead=READ_AHEAD if self.streamed else 0,
            streams_output=self.output,
        )


def closings(device: DeviceCosts, of: ModelCosts) -> tuple[Closing, ...]:
    """The ways for `device` to hold the window that closes the ring."""
    disk = (False, True) if device.disk > 0 else (False,)
    output = disk if of.model.can_stream_output and not of.model.streams_output else (False,)
    found = [Closing(streamed=layers, output=matrix) for layers in disk for matrix in output]
    return (*found, Closing(gpu=True)) if device.gpu is not None else tuple(found)


@dataclass(frozen=True, slots=True)
class Deal:
    """What one device does in a ring of k rounds: layers in all, of them on the GPU, streamed, buffered.

    Of the head these are the layers outside its last window, which closes the ring (`Closing`).
    """

    layers: int
    gpu: int = 0
    streamed: int = 0
    read_ahead: int = 0
    closing: Closing = Closing()


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
