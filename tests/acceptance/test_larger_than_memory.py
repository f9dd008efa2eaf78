"""A model larger than memory: the same answers, nobody killed, no swap, nothing read that could stay."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from benchmarks.residency import least_per_token
from benchmarks.soak import soak
from edged.errors import EdgedError
from edged.frontdoor.client import open_front_door
from edged.planning.plan import Plan
from edged.serving.generation import GenerateRequest, Sampling
from edged.settings import daemon_socket
from edged.store.catalogue import Catalogue
from edged.store.model_profile import model_profile
from tests.acceptance.cluster import FLAGS, Cluster, join
from tests.acceptance.reference import whole_model
from tests.lab import Daemon, Device, Home, LabUnavailableError, usage_of
from tests.lab.disk import forget
from tests.models.architectures import Shape
from tests.models.random_models import write_random_model

MODEL = "large"
SHAPE = Shape(
    n_layers=30, n_embd=2048, n_heads=16, n_kv_heads=4, n_ff=8192, n_vocab=2000, n_ctx=2048
)  # 34 MB a layer in Q4_0
PROGRAM = 192 * 2**20  # bytes of a device's limit for the daemon itself; what follows is for the model
ALONE = 0.5  # of the model
EACH = 0.4  # of it, for one of two devices
WORK = ("--ctx", "512", "--parallel", "1")
PROMPTS = tuple(tuple(300 + (37 + start) * number % 1600 for number in range(8, 20)) for start in range(4))
TOKENS = 8
STEADY = 2  # tokens after which caches are full
SLACK = 1.1  # of the bytes that must be read
SOAK_S = 30.0
GREED = 0.15  # of a device's memory, what another program takes at most


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("large")
    yield write_random_model(folder / "large.gguf", "llama", SHAPE, "Q4_0")
    shutil.rmtree(folder)


def limited(home: Home, name: str, model: Path, share: float) -> Device:
    try:
        return home.device(name, memory=str(PROGRAM + int(model.stat().st_size * share)))
    except LabUnavailableError as missing:
        pytest.skip(str(missing))


def start_head(device: Device, model: Path) -> Daemon:
    head = device.start_daemon(*FLAGS, *WORK)
    head.wait_started()
    device.edged("import", str(model), "--name", MODEL)
    forget([model, *(device.home / "store" / "parts").iterdir()])
    return head


@pytest.fixture
def alone(home: Home, model: Path) -> Cluster:
    """One device, too small for the model."""
    return Cluster(home, [start_head(limited(home, "nuc", model, ALONE), model)])


@pytest.fixture
def pair(home: Home, model: Path) -> Cluster:
    """Two devices that together hold less than the model."""
    head = start_head(limited(home, "nuc", model, EACH), model)
    return Cluster(home, [head, join(head, limited(home, "pi", model, EACH), *WORK)])


def load(cluster: Cluster, devices: int) -> Plan:
    with open_front_door(daemon_socket(cluster.head.place.home)) as client:
        for _ in client.load(MODEL):
            pass
    plan = cluster.wait_ring_of(devices).plan
    assert plan is not None
    return plan


def reads(cluster: Cluster) -> list[int]:
    return [usage_of(daemon.process.pid).read_bytes for daemon in cluster.daemons]


def answer(cluster: Cluster, prompt: tuple[int, ...] = PROMPTS[0]) -> tuple[list[int], list[float]]:
    """The tokens, and for each device the bytes it read per token once in steady state."""
    request = GenerateRequest(
        prompt=prompt, sampling=Sampling(temperature=0), max_tokens=TOKENS, ignore_eos=True
    )
    answered: list[int] = []
    at_steady: list[int] = []
    with open_front_door(daemon_socket(cluster.head.place.home)) as client:
        for event in client.generate(request):
            answered += event.token_ids
            if len(answered) >= STEADY and not at_steady:
                at_steady = reads(cluster)
        end = reads(cluster)
    return answered, [
        (after - before) / (TOKENS - STEADY) for before, after in zip(at_steady, end, strict=True)
    ]


def answers(cluster: Cluster) -> list[list[int]]:
    return [answer(cluster, prompt)[0] for prompt in PROMPTS]


def expected(model: Path, plan: Plan) -> list[list[int]]:
    """What the whole model says to the prompts, where there is memory for it."""
    said: list[list[int]] = []
    with whole_model(plan.context, threads=1, path=model) as llama:
        for prompt in PROMPTS:
            llama.reset()
            generated = llama.generate(list(prompt), temp=0.0)
            said.append([int(token) for token, _ in zip(generated, range(TOKENS), strict=False)])
    assert len({token for tokens in said for token in tokens}) > len(PROMPTS), "one answer fits all"
    return said


def assert_good_guests(devices: Sequence[Device]) -> None:
    for device in devices:
        group = device.memory
        assert group is not None
        assert group.oom_kills == 0
        assert group.swapped == 0
        assert 0 < group.peak <= group.limit


def assert_least_is_read(cluster: Cluster, plan: Plan, read: Sequence[float]) -> None:
    catalogue = Catalogue(cluster.head.place.home)
    profile = model_profile(catalogue.find(MODEL))
    assert plan.expected is not None  # by what was free when it was made: that goes up and down
    budgets = {one.device: one.memory + one.memory_left for one in plan.expected.devices}
    for daemon, bytes_read in zip(cluster.daemons, read, strict=True):
        device = daemon.status().device
        least = least_per_token(profile, plan, device, budgets[device])
        assert bytes_read <= SLACK * least, f"{daemon.place.name} reads {bytes_read / 1e6:.1f} MB a token"


def devices_of(cluster: Cluster) -> list[Device]:
    places = [daemon.place for daemon in cluster.daemons]
    return [place for place in places if isinstance(place, Device)]


def test_one_device_answers_exactly_from_a_model_larger_than_its_memory(alone: Cluster, model: Path) -> None:
    plan = load(alone, 1)
    assert sum(hop.streamed for hop in plan.hops) > 0
    assert answers(alone) == expected(model, plan)
    _, read = answer(alone)
    assert_good_guests(devices_of(alone))
    assert_least_is_read(alone, plan, read)


def test_two_devices_of_two_fifths_each_answer_exactly(pair: Cluster, model: Path) -> None:
    plan = load(pair, 2)
    for device in plan.devices:
        assert sum(plan.hops[hop].streamed for hop in plan.hops_of(device)) > 0
    assert answers(pair) == expected(model, plan)
    _, read = answer(pair)
    assert_good_guests(devices_of(pair))
    assert_least_is_read(pair, plan, read)


def test_a_vanished_model_fails_the_request_clearly_and_heals(alone: Cluster, model: Path) -> None:
    plan = load(alone, 1)
    answer(alone)
    home = alone.head.place.home
    away = home.parent / "away"
    hide(home, away)
    with pytest.raises(EdgedError) as failed:
        answer(alone, PROMPTS[1])
    assert "\n" not in failed.value.message
    assert alone.head.process.running
    assert alone.head.status().plan is not None
    bring_back(home, away)
    alone.wait_ring_of(1)
    assert answers(alone) == expected(model, plan)
    assert "Traceback" not in alone.head.log
    assert_good_guests(devices_of(alone))


def hide(home: Path, away: Path) -> None:
    """As if the disk had lost every large file: an open one ends early, and none is found by its name."""
    for file in [path for path in home.rglob("*") if path.is_file() and path.stat().st_size > 2**20]:
        copy = away / file.relative_to(home)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
        with file.open("r+b") as lost:
            lost.truncate(0)
        file.unlink()


def bring_back(home: Path, away: Path) -> None:
    shutil.copytree(away, home, dirs_exist_ok=True)


def test_other_programs_take_and_release_memory_while_requests_run(pair: Cluster) -> None:
    load(pair, 2)
    seen = soak(
        pair.daemons,
        devices_of(pair),
        lambda: answer(pair)[0],
        seconds=SOAK_S,
        greed=GREED,
        pause=0.1,
    )
    assert seen.problems == []
    assert seen.answers > 1
    assert min(seen.held_by_others) > 0
    assert_good_guests(devices_of(pair))
