"""The layers of this device's windows: loads them where the plan wants them, and makes room for others.

One streamer reads for all windows. What is given up against the plan is taken back, last given up first. The
tensors of streamed layers that stayed in memory are the first to go and the last to return.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from edged.backend.native import NativeWindow, load_window
from edged.backend.residency import Placing, Residency, ResidencyFigures, Streamer
from edged.backend.source import WindowSource
from edged.backend.window import Window
from edged.errors import WindowError
from edged.planning.plan import ContextOptions

log = logging.getLogger(__name__)


class LayerKeeper:
    """Methods may be called from any thread. Close it after the windows."""

    def __init__(self, threads: int, images: Path, *, resident: bool = True) -> None:
        """`threads` compute; `images` is where streamed layers are kept in the form that memory wants.

        resident: False streams every layer of a window that does not fit as a whole, to compare with.
        """
        self._threads = threads
        self._images = images
        self._resident = resident
        self._streamer = Streamer(0)
        self._lock = threading.Lock()
        self._windows: list[NativeWindow] = []
        self._given_up: list[tuple[NativeWindow, int]] = []  # window and layer, in the order of giving up
        self._spare: dict[Window, tuple[int, int]] = {}  # bytes: as it is, and as the plan has it

    def load(
        self,
        source: WindowSource,
        context: ContextOptions,
        placing: Placing,
        progress: Callable[[float], None] | None = None,
    ) -> NativeWindow:
        """Loads a window as `placing` says. Raises WindowError."""
        if placing.gpu_layers > 0 and placing.streams:
            raise WindowError(
                f"layers {source.first} to {source.last - 1}: beside layers on a GPU none can be streamed "
                "from disk; plan fewer layers for this device, or none on its GPU"
            )
        if source.fillers and placing.streams:
            raise WindowError(
                f"layers {source.first} to {source.last - 1} need others beside them to be computed alike, "
                "and none of such a window can be streamed from disk: give the devices more memory"
            )
        placing = self._allowed(placing)
        residency = None
        if placing.gpu_layers == 0 and not source.fillers:
            if placing.streams:
                self._streamer.set_read_ahead(placing.read_ahead)
            residency = Residency(
                self._streamer,
                self._images,
                placing.keys,
                placing.streamed,
                placing.spare,
                placing.output_key,
            )
        window = load_window(
            source, context, self._threads, placing.gpu_layers, progress, residency=residency
        )
        with self._lock:
            self._forget_closed()
            if residency is not None:
                self._windows.append(window)
                self._spare[window] = (placing.spare, placing.spare)
        return window

    def place(self, window: Window, placing: Placing) -> None:
        """Moves the layers of a loaded window to where `placing` wants them. Raises WindowError.

        What was given up of it counts as placed.
        """
        if placing.gpu_layers > 0:
            return
        placing = self._allowed(placing)
        if placing.streams:
            self._streamer.set_read_ahead(placing.read_ahead)
        with self._lock:
            self._given_up = [(other, layer) for other, layer in self._given_up if other is not window]
            window.stream(placing.streamed, placing.spare)
            self._spare[window] = (placing.spare, placing.spare)

    def give_up(self, wanted: int) -> int:
        """Streams what was resident, until `wanted` bytes are free or nothing is left; bytes made free.

        First go single tensors of layers that are streamed anyway. Then the window that holds most gives
        first, its last layer first.
        """
        with self._lock:
            self._forget_closed()
            freed = self._give_up_spare(wanted)
            while freed < wanted:
                candidates = [window for window in self._windows if _resident_layers(window)]
                if not candidates:
                    break
                window = max(candidates, key=lambda window: window.residency.resident)
                layer = _resident_layers(window)[-1]
                before = window.residency.resident
                try:
                    window.stream(sorted({*window.streamed, layer}), self._spare[window][0])
                except WindowError as error:
                    log.warning("layer %d cannot be streamed: %s", window.first + layer, error.message)
                    break
                self._given_up.append((window, layer))
                freed += before - window.residency.resident
        return freed

    def take_back(self, room: int) -> int:
        """Brings what was given up back into memory, as far as `room` bytes allow; bytes taken."""
        taken = 0
        with self._lock:
            self._forget_closed()
            while self._given_up:
                window, layer = self._given_up[-1]
                before = window.residency
                if layer not in window.streamed:  # a new plan has brought it back
                    self._given_up.pop()
                    continue
                if taken + before.streamed // len(window.streamed) > room:
                    break
                others = [other for other in window.streamed if other != layer]
                try:
                    window.stream(others, self._spare[window][0])
                except WindowError as error:
                    log.warning("layer %d stays on disk: %s", window.first + layer, error.message)
                    break
                self._given_up.pop()
                taken += window.residency.resident - before.resident
            if not self._given_up:
                taken += self._take_back_spare(room - taken)
        return taken

    def _give_up_spare(self, wanted: int) -> int:
        freed = 0
        for window in self._windows:
            spare, planned = self._spare[window]
            if spare > 0 and freed < wanted:
                freed -= self._set_spare(window, 0, planned)
        return freed

    def _take_back_spare(self, room: int) -> int:
        taken = 0
        for window in self._windows:
            spare, planned = self._spare[window]
            if spare < planned <= room - taken:
                taken += self._set_spare(window, planned, planned)
        return taken

    def _set_spare(self, window: NativeWindow, spare: int, planned: int) -> int:
        """Bytes by which more is resident then."""
        before = window.residency.resident
        try:
            window.stream(window.streamed, spare)
            self._spare[window] = (spare, planned)
        except WindowError as error:
            log.warning("layers %d to %d: %s", window.first, window.last - 1, error.message)
        return window.residency.resident - before

    def figures(self) -> ResidencyFigures:
        counts = self._streamer.counts
        # without the lock: who asks must not wait while a layer is written to the disk
        bytes_of = [window.residency for window in list(self._windows) if window.is_open]
        given_up = sum(window.is_open for window, _ in list(self._given_up))
        return ResidencyFigures(
            resident=sum(one.resident for one in bytes_of),
            locked=sum(one.locked for one in bytes_of),
            streamed=sum(one.streamed for one in bytes_of),
            read_ahead=counts.slots,
            read=counts.read,
            wasted=counts.wasted,
            waits=counts.waits,
            waited=counts.waited,
            given_up=given_up,
        )

    def close(self) -> None:
        """Ends the streamer's threads; idempotent."""
        self._streamer.close()

    def _allowed(self, placing: Placing) -> Placing:
        if self._resident or not placing.streams:
            return placing
        return replace(placing, streamed=tuple(range(len(placing.keys))), spare=0)

    def _forget_closed(self) -> None:
        self._windows = [window for window in self._windows if window.is_open]
        self._given_up = [(window, layer) for window, layer in self._given_up if window.is_open]
        self._spare = {window: self._spare[window] for window in self._windows}


def _resident_layers(window: NativeWindow) -> list[int]:
    return sorted(set(range(window.last - window.first)) - set(window.streamed))
