"""In which order a ring visits its devices, where links differ."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, permutations

from edged.planning.cost import Problem

MOST_PERMUTED = 4  # devices besides the head of which every order is tried


def orders(problem: Problem) -> Iterator[tuple[str, ...]]:
    """Orders of the devices besides the head worth trying; one where links are alike and layers too."""
    others = tuple(device.device for device in problem.cluster.devices if device.device != problem.head)
    if problem.of.uniform and alike(problem):
        yield others
    elif len(others) <= MOST_PERMUTED:
        there_and_back = problem.of.uniform and both_ways_alike(problem)
        for order in permutations(others):
            if not there_and_back or order <= order[::-1]:
                yield order
    else:
        yield shortest_round(problem, others)


def alike(problem: Problem) -> bool:
    """Whether the order makes no difference: no link is measured, or all are the same."""
    figures = {(link.latency, link.bandwidth) for link in problem.cluster.links}
    n = len(problem.cluster.devices)
    if not figures:
        return True
    return len(figures) == 1 and len(problem.cluster.links) >= n * (n - 1) // 2


def both_ways_alike(problem: Problem) -> bool:
    """Whether a ring takes as long the other way round."""
    known = {(link.source, link.target): link for link in problem.cluster.links}
    return all(
        (back := known.get((target, source))) is None
        or (back.latency, back.bandwidth) == (link.latency, link.bandwidth)
        for (source, target), link in known.items()
    )


def shortest_round(problem: Problem, others: tuple[str, ...]) -> tuple[str, ...]:
    """From each device to its nearest; then turned round in parts while that helps (2-opt)."""
    left, tour = list(others), [problem.head]
    way = {
        (a, b): problem.hop_s(a, b)
        for a in (problem.head, *others)
        for b in (problem.head, *others)
        if a != b
    }
    while left:
        nearest = min(left, key=lambda device: way[tour[-1], device])
        left.remove(nearest)
        tour.append(nearest)
    tour.append(problem.head)

    def length(path: list[str]) -> float:
        return sum(way[a, b] for a, b in pairwise(path))

    best, improved = length(tour), True
    while improved and len(tour) <= 64:  # beyond, a pass takes longer than it saves
        improved = False
        for i in range(1, len(tour) - 2):
            for j in range(i + 2, len(tour)):
                turned = [*tour[:i], *reversed(tour[i:j]), *tour[j:]]
                if (shorter := length(turned)) < best - 1e-12:
                    tour, best, improved = turned, shorter, True
    return tuple(tour[1:-1])
