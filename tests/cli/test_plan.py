"""`edged plan` on files, and on the running cluster as its front door describes it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from edged.cli.main import main
from edged.planning.plan import Objective
from edged.planning.profile import DeviceProfile, LinkProfile
from edged.planning.profile_files import find, read_model
from tests.cli.conftest import Outcome
from tests.cli.door import Door

SMALL = ["plan", "--cluster", "pi-and-minis", "--model", "llama-3.2-3b", "--parallel", "1", "--ctx", "1024"]


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(list(args))
    out, err = capsys.readouterr()
    code = left.value.code
    assert isinstance(code, int) or code is None
    return code or 0, out, err


def test_json_has_what_programs_need(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, *SMALL, "--json")
    assert code == 0
    plan = json.loads(out)
    assert plan["solver"] == "overlap" and plan["rounds"] >= 1
    assert plan["tpot_ms"] > 0 and plan["ttft_ms"] > plan["tpot_ms"]
    covered = [layer for hop in plan["ring"] for layer in range(hop["first"], hop["last"])]
    assert covered == list(range(28))
    for hop in plan["ring"]:
        assert set(hop) == {"device", "first", "last", "gpu", "resident", "streamed", "streams_output"}
        assert hop["gpu"] + hop["resident"] + hop["streamed"] == hop["last"] - hop["first"]
    in_ring = {hop["device"] for hop in plan["ring"]}
    assert in_ring | {out["device"] for out in plan["left_out"]} == {"mini-1", "mini-2", "pi"}


@pytest.mark.parametrize("rounds", [1, 2, 3])
@pytest.mark.parametrize("model", ["llama-3.2-3b", "smollm2-135m"])
def test_rounds_may_be_given(model: str, rounds: int, capsys: pytest.CaptureFixture[str]) -> None:
    args = [*SMALL, "--model", model, "--rounds", str(rounds), "--json"]
    plan = json.loads(run(capsys, *args)[1])
    assert plan["rounds"] == rounds
    ring = [hop["device"] for hop in plan["ring"]]
    assert len(set(ring)) > 1
    assert {device: ring.count(device) for device in ring} == {
        device: rounds + (device == ring[0]) for device in ring
    }


def test_rounds_without_a_ring_are_said_to_change_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = tmp_path / "alone.toml"
    cluster.write_text('[[device]]\nid = "pi"\nprofile = "raspberry-pi-5-8gb"\n')
    args = ["plan", "--cluster", str(cluster), "--model", "smollm2-135m", "--ctx", "512", "--rounds"]
    plan = json.loads(run(capsys, *args, "5", "--json")[1])
    assert plan["rounds"] == 1 and "so that --rounds 5 changes nothing" in plan["note"]
    assert json.loads(run(capsys, *args, "1", "--json")[1])["note"] == ""


def test_one_round_is_what_a_single_device_has(capsys: pytest.CaptureFixture[str]) -> None:
    args = [*SMALL, "--solver", "single", "--json"]
    assert run(capsys, *args, "--rounds", "1")[:2] == run(capsys, *args)[:2]
    code, _, err = run(capsys, *args, "--rounds", "2")
    assert code == 1 and "leave out --rounds" in err


def test_a_context_beyond_the_models_is_said_to_be_cut(capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--cluster", "pi-and-minis", "--model", "smollm2-135m", "--parallel", "1"]
    plan = json.loads(run(capsys, "plan", *model, "--ctx", "10000000", "--json")[1])
    said = "the model was trained on 8192 tokens: a request gets these, not 10000000"
    assert plan["note"] == said
    assert f"note      {said}" in run(capsys, "plan", *model, "--ctx", "10000000")[1]
    assert json.loads(run(capsys, "plan", *model, "--ctx", "8192", "--json")[1])["note"] == ""


def test_text_names_devices_and_says_what_would_help(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["plan", "--cluster", "pi-and-minis", "--model", "qwen3-32b", "--parallel", "1", "--ctx", "1024"]
    code, out, _ = run(capsys, *args, "--solver", "memory")
    assert code == 0
    assert "mini-1" in out and "ms a token" in out and "would help: 8 GB more in" in out


def two(tmp_path: Path, head: str, other: str) -> str:
    """A cluster of two devices by a gigabit switch, by the names of their profiles."""
    cluster = tmp_path / "two.toml"
    cluster.write_text(
        'head = "head"\n[network]\nlatency_ms = 0.4\nmbit_s = 940\n'
        f'[[device]]\nid = "head"\nprofile = {head}\n[[device]]\nid = "other"\nprofile = {other}\n'
    )
    return str(cluster)


def test_a_better_head_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = two(tmp_path, '"nas-ryzen-r1600-8gb"', '"desktop-rtx-4090-24gb"')
    args = ["plan", "--cluster", cluster, "--model", "llama-3-8b", "--parallel", "1"]
    assert "would help: other as the head (--head other) saves" in run(capsys, *args)[1]
    assert "as the head" not in run(capsys, *args, "--head", "any")[1]


def test_a_head_streams_what_it_must_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    big = '"desktop-ryzen-5600-32gb"\nmemory_gib = 60\ndisk_free_gb = 900'
    args = ["--model", "llama-3-70b", "--parallel", "1"]
    cluster = two(tmp_path, '"raspberry-pi-5-8gb"\nmemory_gib = 1.5', big)
    ring = json.loads(run(capsys, "plan", "--cluster", cluster, *args, "--json")[1])["ring"]
    assert ring[-1]["device"] == "head" and ring[-1]["streamed"] == 1
    cluster = two(tmp_path, '"raspberry-pi-5-8gb"\nmemory_gib = 0.9', big)
    code, _, err = run(capsys, "plan", "--cluster", cluster, *args)
    assert code == 1 and err.count("\n") == 1
    assert "head is too small to be the head" in err and "0.90 GiB; choose another head" in err


@pytest.mark.parametrize(
    ("cluster", "model", "flags"),
    [
        ("paper", "llama-1-65b", ["--objective", "throughput", "--parallel", "1", "--ctx", "1024"]),
        ("pi-and-minis", "llama-3-45b", ["--parallel", "16", "--ctx", "8192", "--head", "mini-2"]),
        ("two-macs", "llama-3-70b", ["--parallel", "1", "--ctx", "1024"]),
    ],
)
def test_no_solver_is_better_where_layers_differ(
    cluster: str, model: str, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path, shape = find("clusters", cluster), find("models", model)
    assert path is not None and shape is not None
    goal = "stage_ms" if "throughput" in flags else "tpot_ms"
    args = ["plan", "--cluster", cluster, "--model", model, *flags, "--json"]
    ours = json.loads(run(capsys, *args)[1])
    for solver in ("halda", "even", "memory", "compute"):
        code, out, _ = run(capsys, *args, "--solver", solver)
        assert code != 0 or json.loads(out)[goal] >= ours[goal] * (1 - 1e-9)


def test_more_devices_than_layers_are_named_as_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = tmp_path / "many.toml"
    cluster.write_text(
        "".join(f'[[device]]\nid = "d{i}"\nprofile = "n100-mini-pc-16gb"\n' for i in range(31))
    )
    args = ["plan", "--cluster", str(cluster), "--model", "smollm2-135m"]
    code, _, err = run(capsys, *args, "--solver", "halda")
    assert code == 1 and "31 devices for 30 layers" in err
    assert run(capsys, *args)[0] == 0


@pytest.mark.parametrize("solver", ["halda", "even", "memory", "compute", "single"])
def test_other_solvers_are_no_better(solver: str, capsys: pytest.CaptureFixture[str]) -> None:
    ours = json.loads(run(capsys, *SMALL, "--head", "any", "--json")[1])["tpot_ms"]
    theirs = json.loads(run(capsys, *SMALL, "--solver", solver, "--json")[1])
    assert theirs["solver"] == solver and theirs["tpot_ms"] >= ours * (1 - 1e-9)


def test_the_single_device_is_the_best_one_unless_a_head_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["plan", "--cluster", "paper", "--model", "smollm2-135m", "--solver", "single", "--json"]
    best = json.loads(run(capsys, *args)[1])
    for name in ("D1", "D2", "D3"):
        named = json.loads(run(capsys, *args, "--head", name)[1])
        assert {hop["device"] for hop in named["ring"]} == {name}
        assert named["tpot_ms"] >= best["tpot_ms"]


def test_the_plot_is_a_picture_of_every_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "ring.svg"
    code, out, _ = run(capsys, *SMALL, "--solver", "even", "--plot", str(file), "--json")
    assert code == 0
    texts = [element.text for element in ET.parse(file).iter() if element.tag.endswith("text")]
    assert {hop["device"] for hop in json.loads(out)["ring"]} <= set(texts)
    bars = [float(one.get("width", "0")) for one in ET.parse(file).iter() if one.find("{*}title") is not None]
    assert sum(bars) == pytest.approx(960, rel=0.02)  # no disk works here: the parts make up the token


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--cluster", "nowhere", "--model", "qwen3-8b"), "there is no cluster nowhere"),
        (("--cluster", "pi-and-minis", "--model", "nothing"), "nothing"),
        (("--cluster", "pi-and-minis", "--model", "qwen3-8b", "--head", "attic"), "no device attic"),
        (
            ("--cluster", "pi-and-minis", "--model", "qwen3-8b", "--ctx", "64", "--prompt", "99"),
            "--prompt 99",
        ),
        (("--cluster", "pi-and-minis", "--model", "llama-3.2-3b", "--rounds", "20"), "fewer --rounds"),
        (
            ("--cluster", "pi-and-minis", "--model", "qwen3-8b", "--solver", "halda", "--rounds", "2"),
            "leave out --rounds",
        ),
        (("--cluster", "pi-and-minis", "--model", "qwen3-8b", "--plot", "ring.png"), "ends in .svg"),
    ],
)
def test_what_cannot_be_is_one_line(
    args: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "plan", *args)
    assert code == 1 and out == ""
    assert says in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("memory_gib = 0.3", ("memory for one layer", "0.30 GiB")),
        ("disk_free_gb = 5", ("the free disk", "4.66 GiB", "39.00 GiB")),
        ("disk_sequential_mb_s = 0", ("fits nowhere", "6.80 GiB")),
    ],
)
def test_impossible_wishes_are_told_with_numbers(
    change: str, says: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = tmp_path / "tiny.toml"
    cluster.write_text(f'[[device]]\nid = "pi"\nprofile = "raspberry-pi-5-8gb"\n{change}\n')
    code, out, err = run(capsys, "plan", "--cluster", str(cluster), "--model", "llama-3-70b", "--ctx", "1024")
    assert code == 1 and out == ""
    assert err.count("\n") == 1 and all(part in err for part in says), err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "a device at least"),
        (
            '[[device]]\nid = "pi"\nprofile = "raspberry-pi-5-8gb"\nmemory_gib = -1',
            "memory_gib is -1, but must be at least 0",
        ),
        ('[[device]]\nid = "pi"\nprofile = "raspberry-pi-5-8gb"\nmemory_gib = inf', "memory_gib is inf"),
        ('[[device]]\nid = "pi"\nprofile = "raspberry-pi-5-8gb"\nmemory_gib = nan', "memory_gib is nan"),
        ('[[device]]\nid = "pi"\nprofile = "raspberry-pi-5-8gb"\nmemory_gib = 1e300', "out of all bounds"),
        ('[[device]]\nid = "pi"\nprofile = "raspberry-pi-5-8gb"\nmemory_gib = 0', "0.00 GiB"),
        ('[[device]]\nid = "a"\nprofile = "broken"', "a: a device has a processor"),
        ('head = "z"\n[[device]]\nid = "a"\nprofile = "raspberry-pi-5-8gb"', "broken.toml: the head z"),
        ('[[device]]\nid = ["a"]\nprofile = "raspberry-pi-5-8gb"', "is not a text"),
    ],
)
def test_a_broken_cluster_is_one_line(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = tmp_path / "broken.toml"
    cluster.write_text(text)
    code, out, err = run(capsys, "plan", "--cluster", str(cluster), "--model", "llama-3.2-3b")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert says in err and "fault in edged" not in err


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("n_layers", "10000000", "n_layers"),
        ("n_layers", "-3", "n_layers"),
        ("n_embd", "9223372036854775808", "n_embd"),
        ("n_ctx_train", "4", "n_ctx_train"),
        ("n_ff", "2000000000", "GiB"),
    ],
)
def test_a_model_of_absurd_size_is_one_line(
    field: str, value: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = find("models", "smollm2-135m")
    assert path is not None
    lines = [line for line in path.read_text().splitlines() if not line.startswith(f"{field} =")]
    (tmp_path / "absurd.toml").write_text("\n".join([f"{field} = {value}", *lines]))
    model = str(tmp_path / "absurd.toml")
    code, out, err = run(capsys, "plan", "--cluster", "pi-and-minis", "--model", model)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert says in err and "fault in edged" not in err


def test_names_may_be_of_any_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = tmp_path / "küche.toml"
    cluster.write_text('[[device]]\nid = "küche 🍳"\nprofile = "n100-mini-pc-16gb"\n')
    code, out, _ = run(capsys, "plan", "--cluster", str(cluster), "--model", "llama-3.2-3b", "--ctx", "512")
    assert code == 0 and "küche 🍳" in out


def test_a_plan_is_what_the_running_cluster_could_do(capsys: pytest.CaptureFixture[str]) -> None:
    """No layers from disk beside others on a GPU; where it streams, it says what a daemon tries first."""
    args = ["plan", "--cluster", "paper", "--model", "llama-3-70b", "--ctx", "1024"]
    plan = json.loads(run(capsys, *args, "--parallel", "1", "--json")[1])
    streaming = {hop["device"] for hop in plan["ring"] if hop["streamed"]}
    on_gpu = {hop["device"] for hop in plan["ring"] if hop["gpu"]}
    assert streaming and on_gpu and not streaming & on_gpu
    assert "a running cluster would first try a shorter one" in plan["note"]
    plan = json.loads(run(capsys, *args, "--parallel", "1", "--ctx", "512", "--json")[1])
    assert plan["note"] == ""


Edged = Callable[..., Outcome]
LOADED = "smollm2-135m"  # known as a profile, so that no store is needed


def device(name: str, speed: float) -> DeviceProfile:
    return DeviceProfile(
        device=f"id-{name}",
        name=name,
        memory_budget=2**31,
        disk_free=2**40,
        threads=1,
        bandwidth=speed,
        flops=10 * speed,
    )


@pytest.fixture
def head(door: Door) -> Door:
    """The front door of a head; the link to `gone` is still known, the device is not there any more."""
    path = find("models", LOADED)
    assert path is not None
    door.loaded = LOADED
    door.plan = door.plan.model_copy(update={"model": read_model(path).model})
    door.profiles = (device("nuc", 1e9), device("pi", 1e9))
    door.links = tuple(
        LinkProfile(source="id-nuc", target=target, latency=1e-5, bandwidth=1e9)
        for target in ("id-pi", "id-gone")
    )
    return door


def test_the_running_cluster_is_planned_where_none_is_named(edged: Edged, head: Door) -> None:
    outcome = edged("plan", "--objective", "throughput", "--ctx", "512", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    plan = json.loads(outcome.out)
    assert plan["head"] == "nuc"
    assert {hop["device"] for hop in plan["ring"]} == {"nuc", "pi"}
    assert head.loads == []  # nothing is changed by it
    head.profiles = head.profiles[:1]
    alone = json.loads(edged("plan", "--objective", "throughput", "--ctx", "512", "--json").out)
    assert {hop["device"] for hop in alone["ring"]} == {"nuc"}


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_a_live_plan_is_for_what_the_cluster_is_for(edged: Edged, head: Door, objective: Objective) -> None:
    head.plan = head.plan.model_copy(update={"objective": objective})
    assert json.loads(edged("plan", "--ctx", "512", "--json").out)["objective"] == objective
    head.loaded = ""
    assert json.loads(edged("plan", "--model", LOADED, "--json").out)["objective"] == "latency"


def test_a_live_plan_is_for_the_context_that_runs(edged: Edged, head: Door) -> None:
    def memory(*flags: str) -> int:
        plan = json.loads(edged("plan", "--objective", "latency", *flags, "--json").out)
        return sum(device["memory"] for device in plan["devices"])

    context = head.plan.context.model_copy(update={"n_ctx": 512, "n_seq_max": 2})
    head.plan = head.plan.model_copy(update={"context": context})
    assert memory() == memory("--ctx", "512", "--parallel", "2") < memory("--parallel", "8")
    assert memory() < memory("--ctx", "2048")


def test_a_live_plan_has_as_many_rounds_as_the_head_was_told(edged: Edged, head: Door) -> None:
    def rounds(*flags: str) -> int:
        plan = json.loads(edged("plan", "--objective", "throughput", "--ctx", "512", *flags, "--json").out)
        return int(plan["rounds"])

    head.rounds = 3
    assert rounds() == 3
    assert rounds("--rounds", "2") == 2
    assert rounds("--solver", "even") == rounds("--solver", "single") == 1


def test_what_runs_now_is_shown_beside_what_is_planned(edged: Edged, head: Door, tmp_path: Path) -> None:
    picture = tmp_path / "ring.svg"
    shown = edged("plan", "--ctx", "512", "--plot", str(picture)).out
    assert "now       nuc 0-3 → pi 4-10 → nuc 11 runs, 41.2 ms a token measured\n" in shown
    assert "nuc" in {element.text for element in ET.parse(picture).iter()}
    assert "now  " not in edged("plan", "--model", "llama-3.2-3b", "--ctx", "512", "--parallel", "1").out


def test_only_the_head_can_plan_live(edged: Edged, door: Door) -> None:
    outcome = edged("plan")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (1, "", 1)
    assert "only the head, nuc, knows" in outcome.err and "--cluster" in outcome.err


def test_without_a_daemon_a_cluster_must_be_named(edged: Edged, home: Path) -> None:
    outcome = edged("plan", "--model", LOADED)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (1, "", 1)
    assert f"no daemon answers in {home}" in outcome.err and "pi-and-minis" in outcome.err


def test_a_cluster_without_a_model_wants_one_named(edged: Edged, head: Door) -> None:
    head.loaded = ""
    outcome = edged("plan")
    assert (outcome.code, outcome.out) == (1, "")
    assert "name a model with --model" in outcome.err
