"""Another program on a device, which takes memory and gives it back: run by path, standard library only.

    python hog.py MOST STEP PAUSE [SEED]     bytes, bytes, seconds

Moves its own memory towards a random target below MOST by STEP every PAUSE, holds it there for a while, and
so on. Says what it holds whenever it has reached a target. SIGTERM ends it.
"""

from __future__ import annotations

import mmap
import random
import sys
import time

HOLDS = 10  # pauses at a target


def take(size: int) -> mmap.mmap:
    """Ordinary memory that the kernel had to find."""
    memory = mmap.mmap(-1, size)
    for at in range(0, size, mmap.PAGESIZE):
        memory[at] = 1
    return memory


def live(most: int, step: int, pause: float, seed: int) -> None:
    """Never returns."""
    choose = random.Random(seed)
    held: list[mmap.mmap] = []
    while True:
        target = choose.randint(0, most // step)
        while len(held) != target:
            if len(held) < target:
                held.append(take(step))
            else:
                held.pop().close()
            time.sleep(pause)
        print(f"holds {len(held) * step}", flush=True)
        time.sleep(HOLDS * pause)


if __name__ == "__main__":
    live(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]) if sys.argv[4:] else 0)
