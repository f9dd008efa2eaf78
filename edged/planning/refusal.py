"""Why a wish is impossible: one line with the numbers."""

from __future__ import annotations

from edged.planning.cost import Problem

GIB = 2**30


def refusal(problem: Problem, solver: str, rounds: int | None = None) -> str:
    model, of = problem.model, problem.of
    profiles = [one.profile for one in problem.devices.values()]
    total = model.total_bytes
    disks = sum(profile.disk_free for profile in profiles)
    if solver == "single" or not model.boundaries or len(profiles) == 1:
        disks = max(profile.disk_free for profile in profiles)
    if total > disks:
        whole = "the free disks together" if len(profiles) > 1 else "the free disk"
        return f"the model has {total / GIB:.2f} GiB, {whole} {disks / GIB:.2f} GiB; free some space"
    if solver == "halda" and len(profiles) > model.n_layers:
        return (
            f"--solver {solver} begins with a layer on every device, and there are {len(profiles)} devices "
            f"for {model.n_layers} layers; leave some out, or take --solver overlap"
        )
    layer = max(model.layer_bytes) + of.cache.prefix[-1] / model.n_layers + of.overhead
    most = max(profile.memory_budget for profile in profiles)
    if layer > most:
        return (
            f"no device has memory for one layer: it takes {layer / GIB:.2f} GiB with its cache and buffers, "
            f"the most that a device has is {most / GIB:.2f} GiB"
        )
    head = problem.devices[problem.head]
    output = model.output_memory + of.last_overhead + layer
    if output > head.profile.memory_budget and head.gpu is None:
        return (
            f"{head.name} cannot be the head: output side and one layer take {output / GIB:.2f} GiB, "
            f"it has {head.profile.memory_budget / GIB:.2f} GiB; choose another head (--head)"
        )
    if rounds is not None and rounds > 1:
        at_least = rounds * min(2, len(profiles)) + 1  # of two devices, and the closing layer
        return (
            f"no ring that comes by each device {rounds} times fits: it takes {at_least} layers or more (the "
            f"model has {model.n_layers}) and {rounds * of.overhead / GIB:.2f} GiB of buffers on each "
            f"device; try fewer --rounds"
        )
    memory = sum(profile.memory_budget for profile in profiles)
    memory += sum(0 if one.gpu_shares else one.gpu_budget for one in problem.devices.values())
    needed = total + of.cache.prefix[-1]
    disk = (
        "" if any(one.disk > 0 for one in problem.devices.values()) else "; no device's disk speed is known"
    )
    what = "fits nowhere" if solver == "overlap" else f"does not fit as --solver {solver} shares it out"
    return (
        f"the model {what}: {needed / GIB:.2f} GiB with its cache, {memory / GIB:.2f} GiB of memory on "
        f"{len(profiles)} device{'s' if len(profiles) > 1 else ''}{disk}; add a device, allow more memory "
        f"(--memory) or a shorter context (--ctx)"
    )
