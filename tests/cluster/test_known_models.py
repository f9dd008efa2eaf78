"""Which models the cluster has, as its members own, gain and lose them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from edged.cluster.identity import Identity
from edged.cluster.known_models import KnownModels
from edged.cluster.membership import Member
from edged.cluster.messages import HeartbeatReport
from edged.errors import UnknownModelError
from edged.planning.profile import DeviceProfile
from edged.rpc.channel import connect
from edged.rpc.server import serve
from edged.store.catalogue import Catalogue
from edged.store.importer import import_model
from edged.store.manifest import Manifest
from edged.store.service import StoreService
from tests.models.architectures import Shape
from tests.models.random_models import write_random_model


def member_with(device: str, port: int, *models: Manifest) -> Member:
    report = HeartbeatReport(
        run="0" * 16,
        name="laptop",
        version="1",
        port=port,
        profile=DeviceProfile(
            device=device, name="laptop", memory_budget=0, disk_free=0, threads=1, bandwidth=1, flops=1
        ),
        models=tuple(model.id for model in models),
    )
    return Member(device, "127.0.0.1", report, "alive", 0.0)


def test_a_members_models_are_known_as_long_as_it_owns_them(
    tmp_path: Path, founder: Identity, make_member: Callable[[str], Identity]
) -> None:
    laptop = make_member("laptop")
    store = Catalogue(tmp_path / "laptop")
    model = import_model(write_random_model(tmp_path / "tiny.gguf", shape=Shape(n_layers=3)), store)
    own = Catalogue(tmp_path / "founder")
    with serve(laptop, [StoreService(store).add_to], 0) as server:
        known = KnownModels(own, lambda m: connect(founder, m.device, m.host, m.report.port))
        with pytest.raises(UnknownModelError, match="nor any other"):
            known.find("tiny")
        known.meet(member_with(laptop.device, server.port, model))
        assert known.find("tiny") == known.only() == model
        own.add(model)  # layers of it run here, which does not make it ours
        known.meet(member_with(laptop.device, server.port))
    assert known.all() == ()
    with pytest.raises(UnknownModelError):
        known.find("tiny")


def test_a_name_that_nobody_has_lists_what_there_is_in_the_cluster(tmp_path: Path, founder: Identity) -> None:
    own = Catalogue(tmp_path / "founder")
    import_model(write_random_model(tmp_path / "tiny.gguf", shape=Shape(n_layers=3)), own)
    known = KnownModels(own, lambda m: connect(founder, m.device, m.host, m.report.port))
    with pytest.raises(UnknownModelError, match="there is: tiny"):
        known.find("huge")


def test_a_member_that_does_not_answer_does_not_hold_up_the_end(
    tmp_path: Path, founder: Identity, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("edged.cluster.known_models.ASK_S", 1000.0)
    caplog.set_level("INFO", "edged")
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes connections and never says a word
        known = KnownModels(Catalogue(tmp_path), lambda m: connect(founder, m.device, m.host, m.report.port))
        model = import_model(
            write_random_model(tmp_path / "tiny.gguf", shape=Shape(n_layers=3)), Catalogue(tmp_path / "other")
        )
        ending = threading.Thread(target=lambda: (mute.accept(), known.call_off()), name="ending")
        ending.start()
        known.meet(member_with("laptop", mute.getsockname()[1], model))
        ending.join()
    assert "broken off" in caplog.text
    assert known.all() == ()
