"""Profiles as files: those that come with edged, and what is said of files that are wrong."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, nan
from pathlib import Path

import msgpack
import pytest

from edged.errors import DocumentError, SettingsError
from edged.planning.profile import DeviceProfile
from edged.planning.profile_files import find, names, read_cluster, read_device, read_model

GIB = 2**30
DEVICE = """
os = "linux"
threads = 4
memory_gib = 2
disk_free_gb = 10
[[processor]]
name = "CPU"
kind = "cpu"
memory_bandwidth_gb_s = 20
[processor.speeds]
any = { decode_gb_s = 10, prefill_gflops = 100 }
"""


def test_all_shipped_profiles_can_be_read() -> None:
    for kind, read in (("devices", read_device), ("clusters", read_cluster), ("models", read_model)):
        assert len(names(kind)) >= 4
        for name in names(kind):
            path = find(kind, name)
            assert path is not None
            read(path)


@pytest.mark.parametrize("kind", ["devices", "models"])
def test_every_shipped_profile_says_where_its_figures_come_from(kind: str) -> None:
    for name in names(kind):
        path = find(kind, name)
        assert path is not None
        text = path.read_text()
        sources = ("config.json", "arxiv", "derived", "measured")
        assert any(source in text.lower() for source in sources), name


@pytest.mark.parametrize(
    ("model", "weights"),
    [("llama-3-8b", 8.03e9), ("llama-3-70b", 70.55e9), ("qwen3-30b-a3b", 30.5e9), ("mixtral-8x7b", 46.7e9)],
)
def test_models_have_as_many_weights_as_their_names_say(model: str, weights: float) -> None:
    path = find("models", model)
    assert path is not None
    profile = read_model(path)
    in_layers = sum(group.weights for layer in profile.layers for group in layer.groups)
    assert in_layers + 2 * profile.n_embd * profile.n_vocab == pytest.approx(weights, rel=0.005)


def test_a_token_touches_its_experts_only() -> None:
    path = find("models", "qwen3-30b-a3b")
    assert path is not None
    layer = read_model(path).layers[0]
    active = sum(group.weights * group.share for group in layer.groups)
    assert active * 48 == pytest.approx(2.7e9, rel=0.05)  # "A3B" counts embedding and output too
    touched = [sum(group.touched(n) for group in layer.groups) for n in (1, 16, 10_000)]
    assert touched[0] < touched[1] < touched[2] == pytest.approx(layer.nbytes)


def test_a_cluster_takes_devices_from_beside_it_and_changes_them(tmp_path: Path) -> None:
    (tmp_path / "box.toml").write_text(DEVICE)
    text = """
head = "b"
[network]
latency_ms = 2
mbit_s = 80
[[device]]
id = "a"
profile = "box"
memory_gib = 3
[[device]]
id = "b"
profile = "box"
[[device]]
id = "c"
profile = "raspberry-pi-5-8gb"
[[link]]
between = ["a", "b"]
latency_ms = 0.5
mbit_s = 800
"""
    (tmp_path / "home.toml").write_text(text)
    cluster = read_cluster(tmp_path / "home.toml")
    assert cluster.head == "b" and [one.name for one in cluster.devices] == ["a", "b", "c"]
    assert [one.memory_budget // GIB for one in cluster.devices[:2]] == [3, 2]
    assert cluster.link("b", "a").latency == pytest.approx(0.0005)
    assert cluster.link("a", "c").bandwidth == pytest.approx(1e7)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name = [", "not TOML"),
        (DEVICE.replace("threads = 4", ""), "threads is missing"),
        (DEVICE.replace("threads = 4", 'threads = "4"'), "threads is not a number"),
        (DEVICE.replace("threads = 4", "threads = 4\nmemory_gb = 3"), "memory_gb is not known"),
        (DEVICE.replace("decode_gb_s = 10", "decode_gb_s = 0"), "decode_gb_s is 0, but must be more than 0"),
        (DEVICE.replace("threads = 4", "threads = 0"), "threads is 0, but must be more than 0"),
        (DEVICE.replace("threads = 4", "threads = 4\ndisk_random_mb_s = -1"), "disk_random_mb_s is -1, but"),
        (
            DEVICE.replace("decode_gb_s = 10", "decode_gb_s = 1e-308"),
            "decode_gb_s is 1e-308, which is out of",
        ),
        (DEVICE.replace("decode_gb_s = 10", "decode_gb_s = 1e7"), "believable is 0.001 to 1e+06"),
        (DEVICE.replace("prefill_gflops = 100", "prefill_gflops = nan"), "prefill_gflops is nan"),
        (DEVICE.replace("threads = 4", "threads = 5000"), "threads is 5000, which is out of all bounds"),
        (
            DEVICE.replace("threads = 4", "threads = 4\ndisk_sequential_mb_s = 1e-9"),
            "disk_sequential_mb_s is",
        ),
        (DEVICE.replace("threads = 4", f"threads = {'9' * 5000}"), "is not TOML"),
        (DEVICE.replace("threads = 4", f"threads = 0x{'f' * 5000}"), "box.toml: "),
        ("a = " + "[" * 20_000 + "]" * 20_000, "is nested too deeply"),
        (DEVICE.replace('"cpu"', '"gpu"'), "the first processor is the CPU"),
    ],
)
def test_a_wrong_device_is_refused_by_file_and_field(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "box.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        read_device(path)
    assert says in caught.value.message and "box.toml" in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("read", [read_device, read_cluster, read_model])
def test_brackets_in_brackets_are_refused(read: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "deep.toml"
    for text in ("a = " + "[" * 20_000 + "]" * 20_000, "a = " + "{a = " * 20_000 + "1" + "}" * 20_000):
        path.write_text(text)
        with pytest.raises(SettingsError, match=r"deep\.toml is nested too deeply"):
            read(path)


LINKED = """
[[device]]
id = "a"
profile = "raspberry-pi-5-8gb"
[[device]]
id = "b"
profile = "raspberry-pi-5-8gb"
"""


def _link(source: str, target: str, mbit_s: float) -> str:
    return f'[[link]]\nbetween = ["{source}", "{target}"]\nlatency_ms = 1\nmbit_s = {mbit_s}\n'


def test_a_link_is_given_once(tmp_path: Path) -> None:
    path = tmp_path / "home.toml"
    path.write_text(LINKED + _link("a", "b", 80) + _link("a", "b", 90))
    with pytest.raises(SettingsError, match="the link from a to b is given twice"):
        read_cluster(path)


def test_the_way_back_may_have_a_link_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "home.toml"
    path.write_text(LINKED + _link("a", "b", 80) + _link("b", "a", 8))
    home = read_cluster(path)
    assert [home.link(*ends).bandwidth for ends in ("ab", "ba")] == pytest.approx([1e7, 1e6])


@pytest.mark.parametrize(
    ("field", "value"),
    [("bandwidth", 1e-308), ("flops", inf), ("disk_sequential", 1e-9), ("disk_random", nan)],
)
def test_no_device_says_of_itself_what_cannot_be(field: str, value: float) -> None:
    path = find("devices", "raspberry-pi-5-8gb")
    assert path is not None
    told = {**read_device(path).model_dump(), field: value}
    with pytest.raises(DocumentError, match=field):
        DeviceProfile.unpack(msgpack.packb(told))


def test_what_is_read_at_once_follows_from_the_tensors() -> None:
    """ffn_up, ffn_gate or ffn_down in a dense model, all experts' together where there are some."""
    from edged.planning.cost import Problem
    from edged.planning.device_costs import Workload
    from edged.planning.plan import ContextOptions

    home = find("clusters", "pi-and-minis")
    assert home is not None
    shares = []
    for name in ("llama-3-70b", "qwen3-30b-a3b"):
        path = find("models", name)
        assert path is not None
        problem = Problem(
            read_cluster(home),
            read_model(path),
            ContextOptions(n_ctx=512, n_seq_max=1, n_ubatch=16),
            Workload(),
        )
        shares.append(problem.of.largest_tensor)
    assert 0.25 < shares[0] < 0.36 and 0.28 < shares[1] < 0.45
