"""Broken bytes, broken files, full disks, taken ports: one clear line each, and the daemon lives on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from edged.settings import DEFAULT_HTTP_PORT, DEFAULT_PORT
from edged.store.manifest import Manifest
from tests.acceptance.cluster import FLAGS, MODEL, Cluster, form_cluster, join
from tests.acceptance.reference import bundled_model
from tests.lab import Daemon, Device, Home

QUESTION = ("run", MODEL, "What is a lighthouse?", "--temperature", "0", "--max-tokens", "24")


def device(daemon: Daemon) -> Device:
    place = daemon.place
    assert isinstance(place, Device)
    return place


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The line with which a command failed; there must be exactly one, and no traceback."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("edged: ")]
    assert len(lines) == 1, done.stderr
    assert done.stderr.splitlines()[-1] == lines[0]
    return lines[0]


def model_of(daemon: Daemon) -> Manifest:
    (path,) = (daemon.place.home / "store" / "models").glob("*.manifest")
    return Manifest.unpack(path.read_bytes())


def part_file(daemon: Daemon, name: str) -> Path:
    return daemon.place.home / "store" / "parts" / f"{model_of(daemon).by_name[name].sha256}.gguf"


def flip_a_byte(path: Path) -> None:
    """In the middle of the file, among the weights."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 0x10]))


def first_layer_of(cluster: Cluster, worker: int) -> str:
    plan = cluster.head.status().plan
    assert plan is not None
    hop = plan.hops[plan.hops_of(cluster.workers[worker].status().device)[0]]
    return f"layer.{hop.first:03d}"


@pytest.fixture(scope="module")
def pair(shared_home: Home) -> Cluster:
    """Two devices in one ring; every test mends what it broke."""
    return form_cluster(shared_home, ("head", "attic"))


@pytest.fixture(scope="module")
def lone(shared_home: Home) -> Daemon:
    """A daemon that has nothing to do with the pair."""
    daemon = shared_home.device("lone").start_daemon(*FLAGS)
    daemon.wait_started()
    return daemon


def restart(cluster: Cluster, worker: int) -> None:
    place = device(cluster.workers[worker])
    cluster.daemons[1 + worker] = place.start_daemon(*FLAGS)


def test_a_flipped_byte_is_found_and_the_layer_fetched_again(pair: Cluster) -> None:
    before = pair.head.place.edged(*QUESTION).stdout
    name = first_layer_of(pair, 0)
    part = part_file(pair.head, name)
    copy = pair.workers[0].place.home / "store" / "parts" / part.name
    good = copy.read_bytes()
    assert pair.workers[0].stop() == 0
    flip_a_byte(copy)
    assert copy.read_bytes() != good
    restart(pair, 0)
    pair.wait_ring_of(2)
    assert copy.read_bytes() == good
    assert pair.head.place.edged(*QUESTION).stdout == before


def test_a_source_that_serves_damaged_bytes_is_named(pair: Cluster) -> None:
    """The only copy left is damaged: no wrong answer, a clear word, and importing again mends it."""
    before = pair.head.place.edged(*QUESTION).stdout
    name = first_layer_of(pair, 0)
    source = part_file(pair.head, name)
    good = source.read_bytes()
    copy = pair.workers[0].place.home / "store" / "parts" / source.name
    assert pair.workers[0].stop() == 0
    copy.unlink()
    flip_a_byte(source)
    restart(pair, 0)
    status = pair.head.wait_until(
        lambda status: bool(status.problem) or bool(status.plan and status.plan.left_out), "word of it"
    )
    words = [status.problem, *(out.reason for out in (status.plan.left_out if status.plan else ()))]
    assert any(name in word for word in words), words
    assert not any("\n" in word for word in words)
    assert not copy.exists()
    asked = pair.head.place.edged(*QUESTION, check=False)
    assert asked.stdout == before or one_line(asked), "never a wrong answer"
    assert pair.head.process.running
    assert pair.workers[0].process.running
    pair.head.place.edged("import", str(bundled_model()), "--name", MODEL)
    assert source.read_bytes() == good
    pair.head.place.edged("run", MODEL, "Hello", "--max-tokens", "1")
    pair.wait_ring_of(2)
    assert pair.head.place.edged(*QUESTION).stdout == before


def broken_files(directory: Path) -> dict[str, Path]:
    """Files that are not models, each in its own way."""
    whole = bundled_model().read_bytes()
    text = directory / "letter.gguf"
    text.write_text("Dear Sir or Madam,\n" * 100)
    empty = directory / "empty.gguf"
    empty.touch()
    cut_off = directory / "cut-off.gguf"
    cut_off.write_bytes(whole[: len(whole) // 3])
    header = directory / "header.gguf"
    header.write_bytes(whole[:2000])
    lying = directory / "lying.gguf"
    lying.write_bytes(whole[:8] + b"\xff" * 16 + whole[24:4096])
    unknown = directory / "unknown.gguf"
    writer = gguf.GGUFWriter(unknown, "warp-drive")
    writer.add_block_count(1)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([2, 3, 3, *[6] * 256])
    writer.add_tensor("blk.0.warp.weight", np.zeros((32, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {
        "letter": text,
        "empty": empty,
        "cut off": cut_off,
        "header only": header,
        "lying counts": lying,
        "unknown architecture": unknown,
    }


def test_broken_models_are_refused(lone: Daemon, tmp_path: Path) -> None:
    messages = {}
    for kind, path in broken_files(tmp_path).items():
        messages[kind] = one_line(lone.place.edged("import", str(path), check=False))
    assert "warp-drive" in messages["unknown architecture"]
    assert lone.place.edged("models").stdout.count("gguf") == 0
    store = lone.place.home / "store"
    assert not list((store / "scratch").iterdir())
    assert not list((store / "parts").iterdir())
    assert lone.status().state == "idle"


def test_an_unknown_model_is_named(lone: Daemon) -> None:
    assert "no-such-model" in one_line(lone.place.edged("run", "no-such-model", "Hi", check=False))
    assert lone.process.running


def test_a_full_disk(home: Home) -> None:
    small = home.device("small", disk="24M")
    daemon = small.start_daemon(*FLAGS)
    daemon.wait_started()
    message = one_line(small.edged("import", str(bundled_model()), "--name", MODEL, check=False))
    assert "disk" in message or "space" in message
    assert daemon.status().state == "idle"
    kept = sum(path.stat().st_size for path in (small.home / "store").rglob("*") if path.is_file())
    assert kept < 2**20, "what was begun is cleared away"
    assert daemon.stop() == 0


def test_a_worker_with_a_full_disk_does_not_hold_up_the_others(pair: Cluster, shared_home: Home) -> None:
    pair.wait_ring_of(2)
    tiny = shared_home.device("tiny", disk="4M")
    daemon = join(pair.head, tiny)
    try:
        pair.head.wait_until(
            lambda status: status.state == "ready" and status.plan is not None and len(status.members) == 3,
            "ring beside the full device",
        )
        assert pair.head.place.edged(*QUESTION).stdout.strip()
        assert daemon.process.running
    finally:
        daemon.stop()
    pair.wait_ring_of(2)


@pytest.mark.parametrize("port", [DEFAULT_PORT, DEFAULT_PORT + 1, DEFAULT_HTTP_PORT])
def test_a_taken_port(home: Home, port: int) -> None:
    busy = home.device("busy")
    script = (
        "import signal, socket, sys\n"
        "server = socket.create_server(('0.0.0.0', int(sys.argv[1])))\n"
        "print('up', flush=True)\nsignal.pause()"
    )
    busy.popen([sys.executable, "-c", script, str(port)]).wait_for_line("up")
    done = busy.edged("start", *FLAGS, check=False, timeout=60)
    message = one_line(done)
    assert str(port) in message
    assert "taken" in message
    assert busy.namespace.listening() == [f"0.0.0.0:{port}"]


def test_a_second_daemon_in_the_same_home(lone: Daemon) -> None:
    assert "a daemon runs" in one_line(lone.place.edged("start", *FLAGS, check=False, timeout=60))
    assert lone.process.running
    assert lone.status().state == "idle"


def test_a_prompt_beyond_the_context(pair: Cluster) -> None:
    plan = pair.wait_ring_of(2).plan
    assert plan is not None
    long = "word " * (plan.context.n_ctx + 100)
    done = pair.head.place.edged("run", MODEL, "-", "--max-tokens", "4", check=False, stdin=long)
    assert str(plan.context.n_ctx) in one_line(done)
    assert pair.head.place.edged(*QUESTION).stdout.strip()
    assert pair.head.status().active_requests == 0
