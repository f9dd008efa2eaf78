"""Documents from strangers and members: read, or refused in one line, whatever the bytes."""

from __future__ import annotations

import importlib
import pkgutil
import random
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

import edged
from edged import documents
from edged.documents import Document
from edged.errors import DocumentError, EdgedError
from edged.store.catalogue import Catalogue
from edged.store.compose import compose
from edged.store.importer import import_model
from edged.store.manifest import Manifest
from edged.store.messages import PartQuery
from edged.store.model_profile import model_profile
from tests.models.random_models import write_random_model

_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 7, 2**31, -(2**31), 2**63 - 1, 2**64 - 1, -(2**63), 0.5, float("nan"),
    float("inf"), "", "x", "a\nb\x1b[31m", "é" * 300, "\ud800", b"", b"\xff\xfe", b"x" * 300, [], [0], [[]],
    [2**64 - 1] * 5, ["x", 1, b"y"], {}, {"x": 1}, {"a\nb": {}}, msgpack.Timestamp(2**33, 5),
    msgpack.ExtType(4, b"z"),
]  # fmt: skip

_BOMBS = {
    "a list that says it is long": b"\xdd\xff\xff\xff\xff",
    "a map that says it is long": b"\xdf\xff\xff\xff\xff",
    "a text that says it is long": b"\xdb\xff\xff\xff\xff",
    "a long list of lists that say they are long": b"\xdd\x00\x01\x00\x00" + b"\xdd\xff\xff\xff\xff" * 2**16,
    "lists in lists": b"\x91" * 2**20,
    "maps in maps": b"\x81\xa1a" * 2**18,
    "millions of nothings": b"\xdd" + struct.pack(">I", 2**23) + b"\xc0" * 2**23,
    "very many empty maps": b"\xdc\x07\xff" + (b"\xdc\x00\xff" + b"\x80" * 0xFF) * 0x7FF,
    "very many short texts": b"\xdc\x07\xff" + (b"\xdc\x00\xff" + b"\xa2ab" * 0xFF) * 0x7FF,
    "a text that is none": b"\x81\xa4name\xa2\xff\xfe",
    "a key that is a map": b"\x81\x80\x00",
    "the same key twice": b"\x82\xa1a\x01\xa1a\x02",
    "time without end": b"\xc7\x0c\xff" + b"\xff" * 12,
    "nothing": b"",
    "two documents": b"\x80\x80",
    "an unknown field of a megabyte": msgpack.packb({"\n" * 2**20: 1}),
}


def kinds() -> list[type[Document]]:
    """Every document there is."""
    for module in pkgutil.walk_packages(edged.__path__, "edged."):
        if not module.name.startswith(("edged.cli", "edged.__main__")):
            importlib.import_module(module.name)

    def below(kind: type[Document]) -> Iterator[type[Document]]:
        for child in kind.__subclasses__():
            yield child
            yield from below(child)

    return sorted((kind for kind in below(Document) if kind.__module__.startswith("edged.")), key=str)


def read_or_refused(kind: type[Document], body: bytes) -> Document | None:
    try:
        document = kind.unpack(body)
    except DocumentError as error:
        assert error.message.isprintable(), error.message[:300]
        assert len(error.message) < 500, error.message[:300]
        return None
    again = kind.unpack(document.pack())
    assert again.pack() == document.pack()  # a NaN in it is no reason to differ
    return document


def packed(value: object) -> bytes:
    return bytes(msgpack.packb(value, unicode_errors="surrogatepass"))


def test_there_are_documents() -> None:
    assert len(kinds()) > 25


@pytest.mark.parametrize("bomb", _BOMBS)
def test_bytes_that_swell(bomb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_VALUES", 2**18)  # of the half million in some of them
    body = _BOMBS[bomb]
    for kind in (Manifest, PartQuery):
        tracemalloc.start()
        try:
            read_or_refused(kind, body)
            assert tracemalloc.get_traced_memory()[1] < 32 * 2**20 + 2 * len(body)
        finally:
            tracemalloc.stop()


def test_depth_is_named_as_the_reason() -> None:
    with pytest.raises(DocumentError, match="not a PartQuery: it is nested too deeply"):
        PartQuery.unpack(_BOMBS["lists in lists"])


def test_fields_of_any_value() -> None:
    rng = random.Random(2)
    read = 0
    for kind in kinds():
        for _ in range(40):
            value = {name: rng.choice(_VALUES) for name in kind.model_fields if rng.random() < 0.9}
            if rng.random() < 0.1:
                value[rng.choice(["other", "a\nb", ""])] = 1
            read += read_or_refused(kind, packed(value)) is not None
    assert read > 20


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> tuple[Catalogue, Manifest]:
    folder = tmp_path_factory.mktemp("fuzz")
    catalogue = Catalogue(folder / "home")
    return catalogue, import_model(write_random_model(folder / "small.gguf"), catalogue)


def bent(rng: random.Random, value: Any) -> Any:
    """The tree with one of its values replaced, a list's entry lost or doubled."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        return {**value, key: bent(rng, value[key])}
    if isinstance(value, list | tuple) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        others = [list(value[:at]), list(value[at + 1 :])]
        middle = rng.choice([[], [value[at], value[at]], [bent(rng, value[at])], [bent(rng, value[at])]])
        return [*others[0], *middle, *others[1]]
    if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.5:
        return value + rng.choice([-1, 1, 32, -32, 4096])
    return rng.choice(_VALUES)


def test_a_hostile_manifest_is_refused_or_composed(home: tuple[Catalogue, Manifest]) -> None:
    catalogue, manifest = home
    sound = msgpack.unpackb(manifest.pack())
    rng = random.Random(9)
    composed = refused = 0
    for _ in range(400):
        document = read_or_refused(Manifest, packed(bent(rng, sound)))
        if document is None:
            refused += 1
            continue
        assert isinstance(document, Manifest)
        model_profile(document)
        try:
            for first, last in (
                (0, document.n_layers),
                (0, 1),
                (1, 3),
                (document.n_layers - 1, document.n_layers),
            ):
                assert compose(document, catalogue, first, last).size > 0
            composed += 1
        except EdgedError as error:
            assert error.message.isprintable(), error.message
    assert composed > 20 and refused > 100


def test_a_manifest_of_a_trillion_layers_costs_nothing(
    home: tuple[Catalogue, Manifest], tmp_path: Path
) -> None:
    value = msgpack.unpackb(home[1].pack())
    for field in ("n_layers", "n_embd", "n_vocab", "n_ctx_train", "kv_bytes_per_token_layer"):
        assert read_or_refused(Manifest, packed({**value, field: 10**13})) is None
