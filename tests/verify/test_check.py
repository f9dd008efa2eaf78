"""What a verification says of models that are well, that differ, that cannot be cut, that end llama.cpp."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from edged.errors import BrokenModelError, SettingsError, UnknownModelError, WindowError
from edged.store.catalogue import Catalogue
from edged.store.importer import import_model
from edged.store.manifest import Manifest, Part
from edged.verify import check as checking
from edged.verify.check import Wishes, verify_in
from edged.verify.comparison import Place
from edged.verify.cuts import Cut, Refused
from edged.verify.jobs import CutDone, Inspect, Inspected, RunCut, RunWhole, WholeDone
from edged.verify.session import Session
from tests.models.architectures import Shape
from tests.models.decoders import write_decoder
from tests.models.random_models import write_random_model
from tests.verify.conftest import Verify


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_random_model(tmp_path / "small.gguf", shape=Shape(n_layers=4))


def test_a_file_is_verified_where_it_lies(small: Path, verify: Verify, tmp_path: Path) -> None:
    report = verify(small)
    assert report.exact
    assert (report.model, report.architecture, report.reference) == ("small", "llama", "file")
    assert [list(result.cut.boundaries) for result in report.cuts] == [[2], [1, 3], [1, 2, 3]]
    assert [result.max_abs_diff for result in report.cuts] == [0.0, 0.0, 0.0]
    stored = sum(path.stat().st_size for path in tmp_path.glob("scratch/store/parts/*"))
    assert 0 < stored < small.stat().st_size / 10  # the vocabulary, and none of the weights


def test_a_model_of_the_store_is_verified(small: Path, session: Session, tmp_path: Path) -> None:
    import_model(small, Catalogue(tmp_path), "mine")
    small.unlink()
    report = verify_in(session, tmp_path, "mine", tmp_path, Wishes(1, (2,)), lambda *_: None)
    assert report.exact
    assert (report.model, report.reference, report.whole) == ("mine", "store", None)


def test_a_split_model_is_verified(verify: Verify, tmp_path: Path) -> None:
    """Its files share layers among them: those parts are put together first."""
    write_random_model(tmp_path / "split.gguf", shape=Shape(n_layers=4), split_max_tensors=7)
    first = min(tmp_path.glob("split-*.gguf"))
    assert len(list(tmp_path.glob("split-*.gguf"))) > 3
    assert verify(first).exact


def test_a_model_without_a_vocabulary_is_verified(verify: Verify, tmp_path: Path) -> None:
    """Tokens are but numbers here."""
    path = tmp_path / "mute.gguf"
    small = gguf.GGUFReader(write_random_model(tmp_path / "small.gguf"))
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in small.fields.items():
        if name.startswith("llama."):
            writer.add_key_value(name, value.contents(), value.types[0])
    writer.add_uint32("llama.vocab_size", Shape().n_vocab)
    writer.add_tokenizer_model("no_vocab")
    for tensor in small.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    report = verify(path)
    assert report.exact
    assert report.cuts


def test_one_layer_leaves_nothing_to_cut(verify: Verify, tmp_path: Path) -> None:
    report = verify(write_random_model(tmp_path / "one.gguf", shape=Shape(n_layers=1)))
    assert report.exact
    assert report.cuts == ()
    assert report.whole is not None
    assert report.whole.cut == Cut(())
    assert report.reason == "it runs whole only: it has one layer only"


def test_too_many_windows_are_refused_and_the_others_run(small: Path, verify: Verify) -> None:
    report = verify(small, windows=(2, 5))
    assert report.exact
    assert [result.cut.boundaries for result in report.cuts] == [(2,)]
    assert report.refused == (Refused(5, "it has 4 layers only"),)
    assert report.lines()[-1] == "in 5 windows: refused, it has 4 layers only"


def test_where_no_wish_can_be_met_nothing_is_loaded(small: Path, session: Session, tmp_path: Path) -> None:
    shown: list[str] = []
    report = verify_in(
        session, tmp_path, str(small), tmp_path, Wishes(1, (5,)), lambda stage, *_: shown.append(stage)
    )
    assert not report.exact
    assert report.refused == (Refused(5, "it has 4 layers only"),)
    assert report.reason == "no cut asked for is possible"
    assert shown == []


def test_no_more_tokens_than_the_model_has_positions(verify: Verify, tmp_path: Path) -> None:
    """Learned positions are rows of a table, and libllama does not survive a look beyond it."""
    path = write_decoder(tmp_path / "gpt2.gguf", "gpt2")
    report = verify(path, n_tokens=300, windows=(2,))
    assert (report.exact, report.tokens) == (True, 256)


@pytest.mark.parametrize("n_tokens", [3, 4097])
def test_absurd_numbers_of_tokens_are_refused(small: Path, verify: Verify, n_tokens: int) -> None:
    with pytest.raises(SettingsError, match="4 to 4096 tokens"):
        verify(small, n_tokens=n_tokens)


def test_neither_a_file_nor_a_model(session: Session, tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError):
        verify_in(session, tmp_path, "nothing", tmp_path, Wishes(1), lambda *_: None)


def test_a_model_larger_than_memory_is_refused(
    small: Path, verify: Verify, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "memory_budget", lambda cap, held: 1000)
    with pytest.raises(WindowError, match="all of it must be in memory once"):
        verify(small)


def test_a_model_that_ends_llama_cpp_is_an_error_and_the_next_one_runs(
    small: Path, verify: Verify, tmp_path: Path
) -> None:
    """The header is sound; what is missing is only noticed when the graph is made."""
    with pytest.raises(WindowError, match=r"^llama.cpp ended with SIG[A-Z]+ \(.*\)$"):
        verify(without(tmp_path, "nemotron_h", ".ssm_conv1d.bias"))
    assert verify(small).exact


def test_a_broken_model_is_refused(verify: Verify, tmp_path: Path) -> None:
    with pytest.raises(BrokenModelError, match=r"blk\.1\.attn_q\.weight. not found"):
        verify(without(tmp_path, "llama", "1.attn_q.weight"))


def without(tmp_path: Path, name: str, ending: str) -> Path:
    from tests.models import decoders

    table = decoders.decoders()
    full = table[name]
    tensors = tuple(one for one in full.tensors if not one[0].endswith(ending))
    assert len(tensors) < len(full.tensors)
    broken = decoders.Decoder(
        name, full.architecture, full.n_layers, full.n_embd, full.hyperparameters, tensors
    )
    table[name] = broken
    try:
        return decoders.write_decoder(tmp_path / f"{name}.gguf", name)
    finally:
        table[name] = full


def test_windows_of_another_model_are_found_out(small: Path, session: Session, tmp_path: Path) -> None:
    """The store's copy of one layer is another layer's: as wrong as a mistaken cut."""
    catalogue = Catalogue(tmp_path)
    manifest = import_model(small, catalogue, "right")
    fields = manifest.model_dump() | {"name": "wrong", "parts": tuple(swap(manifest))}
    catalogue.add(Manifest.model_validate(fields))
    subject = checking.subject_of(session, tmp_path, str(small), tmp_path, Wishes(1))
    done = session.whole(RunWhole(subject), lambda *_: None)
    assert done == WholeDone(rolled_back=True, fault="")
    for boundaries in ((), (2,), (1, 3)):
        job = RunCut(subject, Cut(boundaries), rolled_back=True)
        assert session.cut(job, lambda *_: None).first is None
        other = checking.subject_of(session, tmp_path, "wrong", tmp_path, Wishes(1))
        found = session.cut(RunCut(other, Cut(boundaries), rolled_back=True), lambda *_: None)
        assert found.first == Place(frame=0, sequence=0, position=0)
        assert found.largest > 0.001


def swap(manifest: Manifest) -> list[Part]:
    """The parts, with layer 1's bytes where layer 2's should be."""
    one, two = manifest.layer(1), manifest.layer(2)
    places = {tensor.name.split(".", 2)[2]: tensor.offset for tensor in one.tensors}
    tensors = tuple(
        tensor.model_copy(update={"offset": places[tensor.name.split(".", 2)[2]]}) for tensor in two.tensors
    )
    wrong = two.model_copy(update={"sha256": one.sha256, "size": one.size, "tensors": tensors})
    return [wrong if part.name == two.name else part for part in manifest.parts]


class Culprit(Session):
    """Every cut at or behind one boundary differs from frame 2 on; it computes nothing."""

    def __init__(self, boundary: int) -> None:
        super().__init__(Path("/nowhere"))
        self.boundary = boundary
        self.asked: list[tuple[tuple[int, ...], int | None]] = []

    def inspect(self, job: Inspect) -> Inspected:
        return Inspected(n_vocab=Shape().n_vocab, recurrent=False)

    def whole(self, job: RunWhole, show: Callable[[int, int], None]) -> WholeDone:
        return WholeDone(rolled_back=True, fault="")

    def cut(self, job: RunCut, show: Callable[[int, int], None]) -> CutDone:
        self.asked.append((job.cut.boundaries, job.until))
        if self.boundary in job.cut.boundaries:
            return CutDone(Place(2, 0, 35), 0.5)
        return CutDone()


@pytest.mark.parametrize("boundary", [1, 2, 5, 6])
def test_the_first_boundary_that_differs_is_found(boundary: int, tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "model.gguf", shape=Shape(n_layers=7))
    session = Culprit(boundary)
    report = verify_in(session, tmp_path, str(path), tmp_path, Wishes(1, (7,)), lambda *_: None)
    (result,) = report.cuts
    assert (result.exact, result.max_abs_diff, result.first_boundary) == (False, 0.5, boundary)
    assert all(until == 2 for _, until in session.asked[1:])  # only as far as needed
    assert report.lines()[1] == (
        "one window per layer: differs by up to 0.5, from position 35 of sequence 0 on; "
        f"the cut before layer {boundary} is the first to change anything"
    )
    assert report.as_json()["exact"] is False
