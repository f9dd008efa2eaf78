"""Ways to spoil a GGUF: each takes a random generator and an image, bends the image and says how."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import gguf

from edged.store.gguf_file import ValueType
from tests.fuzz.image import Entry, Image, Weights, array, scalar

Mutation = Callable[[random.Random, Image], str]

_INTEGERS = [0, 1, 2, 3, 7, 31, 32, 33, 255, 256, 4096, 100_000, 2**20, 2**31 - 1, 2**31, 2**32 - 1, -1, -2]
_LONGS = [*_INTEGERS, 2**40, 2**62, 2**63, 2**64 - 1]
_FLOATS = [0.0, -0.0, 1.0, -1.0, 1e-38, 1e38, 1e-5, float("nan"), float("inf"), float("-inf")]
_WORDS = [
    b"",
    b"\xff\xfe",
    b"a\nb",
    b"\x00",
    b"llama",
    b"none",
    b"linear",
    b"yarn",
    b"longrope",
    b"gpt2",
    b"x" * 70,
]
_TOKENIZERS = [
    "llama",
    "gpt2",
    "bert",
    "t5",
    "rwkv",
    "plamo2",
    "gemma4",
    "hybriddna",
    "whitespace",
    "test",
    "none",
]
_PRETOKENIZERS = [
    "default",
    "llama-bpe",
    "gemma4",
    "kimi-k2",
    "qwen2",
    "sarvam-moe",
    "whitespace",
    "superbpe",
]
_SCALARS = [ValueType.UINT8, ValueType.INT8, ValueType.UINT16, ValueType.INT16, ValueType.UINT32]
_SCALARS += [ValueType.INT32, ValueType.UINT64, ValueType.INT64]


def _known_keys() -> list[str]:
    """Every metadata key that gguf-py has a name for; `{arch}` stands for the architecture."""
    found: set[str] = set()
    for group in vars(gguf.Keys).values():
        if isinstance(group, type):
            found.update(value for value in vars(group).values() if isinstance(value, str) and "." in value)
    return sorted(key for key in found if key.startswith(("{arch}", "tokenizer.", "general.", "split.")))


_KEYS = _known_keys()
_ARCHITECTURES = sorted(set(gguf.MODEL_ARCH_NAMES.values()))
_TENSORS = sorted(set(gguf.TENSOR_NAMES.values()))


def _pick(rng: random.Random, image: Image) -> Entry | None:
    """A key, more often a hyperparameter than one of the tokenizer's."""
    prefix = image.architecture.encode() + b"."
    own = [entry for entry in image.entries if entry.key.startswith(prefix)]
    return rng.choice(own if own and rng.random() < 0.7 else image.entries) if image.entries else None


def _any_scalar(rng: random.Random, key: str) -> Entry:
    kind = rng.choice([*_SCALARS, ValueType.FLOAT32, ValueType.BOOL, ValueType.STRING])
    if kind is ValueType.STRING:
        return scalar(key, kind, rng.choice(_WORDS))
    if kind is ValueType.FLOAT32:
        return scalar(key, kind, rng.choice(_FLOATS))
    return scalar(key, kind, rng.choice(_LONGS) if kind is not ValueType.BOOL else rng.random() < 0.5)


def count_of_pairs(rng: random.Random, image: Image) -> str:
    image.n_entries = rng.choice([0, len(image.entries) - 1, len(image.entries) + 1, *_LONGS[-10:]]) % 2**64
    return f"claims {image.n_entries} pairs"


def count_of_tensors(rng: random.Random, image: Image) -> str:
    image.n_tensors = rng.choice([0, len(image.tensors) - 1, len(image.tensors) + 1, *_LONGS[-10:]]) % 2**64
    return f"claims {image.n_tensors} tensors"


def version_or_magic(rng: random.Random, image: Image) -> str:
    if rng.random() < 0.5:
        image.version = rng.choice([0, 1, 2, 4, 3 << 24, 2**32 - 1])
        return f"version {image.version}"
    image.magic = rng.choice([b"GGUG", b"FUGG", b"\x00\x00\x00\x00", b"GGJT"])
    return f"magic {image.magic!r}"


def truncation(rng: random.Random, image: Image) -> str:
    whole = len(image.built())
    image.cut = rng.randrange(whole)
    return f"cut at {image.cut} of {whole}"


def flipped_bytes(rng: random.Random, image: Image) -> str:
    data = sum(len(tensor.data) for tensor in image.tensors)
    head = max(1, len(image.built()) - data)
    image.flips += [(rng.randrange(head), rng.randrange(256)) for _ in range(rng.choice([1, 1, 2, 8]))]
    return f"flips {image.flips}"


def lost_key(rng: random.Random, image: Image) -> str:
    entry = _pick(rng, image)
    if entry is not None:
        image.entries.remove(entry)
    return f"without {entry and entry.key!r}"


def doubled_key(rng: random.Random, image: Image) -> str:
    entry = _pick(rng, image)
    if entry is not None:
        image.entries.insert(rng.randrange(len(image.entries) + 1), entry)
    return f"twice {entry and entry.key!r}"


def other_value(rng: random.Random, image: Image) -> str:
    entry = _pick(rng, image)
    if entry is None:
        return "nothing"
    if entry.kind == ValueType.ARRAY:
        return _bend_array(rng, entry)
    if entry.kind == ValueType.STRING:
        word = rng.choice(_WORDS)
        entry.raw = struct.pack("<Q", len(word)) + word
        return f"{entry.key!r} is {word!r}"
    value: float
    if entry.kind in (ValueType.FLOAT32, ValueType.FLOAT64):
        value = rng.choice(_FLOATS)
    elif rng.random() < 0.4:
        value = int.from_bytes(entry.raw, "little") + rng.choice([-1, 1, 1, 8, -8])
    else:
        value = rng.choice(_INTEGERS)
    entry.raw = scalar("", ValueType(entry.kind), value).raw if entry.kind != ValueType.BOOL else entry.raw
    return f"{entry.key!r} is {value}"


def _bend_array(rng: random.Random, entry: Entry) -> str:
    if entry.element == ValueType.STRING:
        return _bend_words(rng, entry)
    size = len(entry.raw) // entry.count if entry.count else 1
    how = rng.randrange(4)
    if how == 0:
        entry.count = rng.choice([0, entry.count - 1, entry.count + 1, *_LONGS]) % 2**64
    elif how == 1:
        entry.count = rng.randrange(entry.count + 1)
        entry.raw = entry.raw[: entry.count * size]
    elif how == 2 and entry.count:
        at = rng.randrange(entry.count) * size
        entry.raw = entry.raw[:at] + rng.randbytes(size) + entry.raw[at + size :]
    else:
        entry.element = rng.choice([0, 1, 4, 5, 6, 7, 8, 9, 10, 12, 13])
    return f"array {entry.key!r} bent, way {how}: {entry.count} of type {entry.element}"


def _bend_words(rng: random.Random, entry: Entry) -> str:
    words, at = [], 0
    for _ in range(entry.count):
        (length,) = struct.unpack_from("<Q", entry.raw, at)
        words.append(entry.raw[at + 8 : at + 8 + length])
        at += 8 + length
    how = rng.randrange(6)
    at = rng.randrange(len(words)) if words else 0
    if how == 0:
        del words[at:]
    elif how == 1 and words:
        words[at] = rng.choice([*_WORDS, rng.randbytes(5)])
    elif how == 2 and words:
        words[at] = rng.choice(words)
    elif how == 3:
        words.append(rng.randbytes(3))
    elif how == 4 and words:
        words[at] = b"x" * rng.choice([2000, 100_000])
    entry.raw = b"".join(struct.pack("<Q", len(word)) + word for word in words)
    entry.count = len(words) if how != 5 else rng.choice(_LONGS) % 2**64
    return f"words of {entry.key!r} bent, way {how} at {at}"


def other_type(rng: random.Random, image: Image) -> str:
    entry = _pick(rng, image)
    if entry is None:
        return "nothing"
    at = image.entries.index(entry)
    key = entry.key.decode("utf-8", "replace")
    if rng.random() < 0.6:
        image.entries[at] = _any_scalar(rng, key)
    else:
        image.entries[at] = _any_array(rng, key, image)
    return f"another type: {image.entries[at]!r}"[:150]


def _any_array(rng: random.Random, key: str, image: Image) -> Entry:
    layers = image.find(f"{image.architecture}.block_count")
    n_layers = int.from_bytes(layers.raw, "little") if layers is not None and layers.kind == 4 else 5
    count = rng.choice([0, 1, 2, 4, n_layers - 1, n_layers, n_layers, n_layers + 1, 600]) % 1000
    kind = rng.choice(
        [ValueType.UINT32, ValueType.INT32, ValueType.FLOAT32, ValueType.BOOL, ValueType.STRING]
    )
    if kind is ValueType.STRING:
        return array(key, kind, [rng.choice(_WORDS) for _ in range(count)])
    if kind is ValueType.FLOAT32:
        return array(key, kind, [rng.choice(_FLOATS) for _ in range(count)])
    values = [0, 1] if kind is ValueType.BOOL else [0, 0, 1, 2, 4, 16, 64, *_INTEGERS]
    return array(key, kind, [float(rng.choice(values)) for _ in range(count)])


def further_key(rng: random.Random, image: Image) -> str:
    """One that some model has and this one has not, with a value that need not fit."""
    key = rng.choice(_KEYS).replace("{arch}", image.architecture)
    if image.find(key) is not None:
        return other_value(rng, image)
    made = (
        _any_scalar(rng, key) if rng.random() < 0.5 else scalar(key, ValueType.UINT32, rng.choice(_INTEGERS))
    )
    if rng.random() < 0.25:
        made = _any_array(rng, key, image)
    image.entries.append(made)
    return f"also {made!r}"[:150]


def other_tokenizer(rng: random.Random, image: Image) -> str:
    name = rng.choice(_TOKENIZERS)
    pre = rng.choice(_PRETOKENIZERS)
    keys = (b"tokenizer.ggml.model", b"tokenizer.ggml.pre")
    image.entries = [entry for entry in image.entries if entry.key not in keys]
    image.entries.append(scalar("tokenizer.ggml.model", ValueType.STRING, name))
    image.entries.append(scalar("tokenizer.ggml.pre", ValueType.STRING, pre))
    if rng.random() < 0.8 and image.find("tokenizer.ggml.merges") is None:
        image.entries.append(
            array("tokenizer.ggml.merges", ValueType.STRING, ["a b", "ab c", "Ġ t", " ", ""])
        )
    if name == "t5" and rng.random() < 0.7:
        table = [
            rng.choice([rng.getrandbits(32), rng.randrange(400) << 10])
            for _ in range(rng.choice([1, 8, 300]))
        ]
        body = struct.pack(f"<{len(table)}I", *table)
        charsmap = struct.pack("<I", len(body)) + body + rng.choice([b"a\0b\0", b"xyz", b"\0"])
        image.entries.append(array("tokenizer.ggml.precompiled_charsmap", ValueType.UINT8, list(charsmap)))
    return f"tokenizer {name}, {pre}"


def other_architecture(rng: random.Random, image: Image) -> str:
    """The same metadata and tensors under another architecture's name."""
    old, new = image.architecture, rng.choice(_ARCHITECTURES)
    for entry in image.entries:
        if entry.key == b"general.architecture":
            entry.raw = struct.pack("<Q", len(new)) + new.encode()
        elif entry.key.startswith(old.encode() + b"."):
            entry.key = new.encode() + entry.key[len(old) :]
    return f"as {new}"


def lost_tensor(rng: random.Random, image: Image) -> str:
    if not image.tensors:
        return "nothing"
    tensor = image.tensors.pop(rng.randrange(len(image.tensors)))
    return f"without {tensor.name!r}"


def other_name(rng: random.Random, image: Image) -> str:
    if not image.tensors:
        return "nothing"
    tensor, old = rng.choice(image.tensors), b""
    old, other = tensor.name, rng.choice(image.tensors).name
    spoilt = old.replace(b"blk.", b"blk.%d" % rng.choice([9, 99, 511, 5000]), 1)
    known = rng.choice(_TENSORS).format(bid=rng.choice([0, 1, 77]), xid=0).encode() + b".weight"
    tensor.name = rng.choice([other, spoilt, b"x" * 64, b"\xff", old + b"\n", b"blk.-1.x", known, b""])
    return f"{old!r} is called {tensor.name!r}"


def further_tensor(rng: random.Random, image: Image) -> str:
    known = rng.choice(_TENSORS).format(bid=rng.randrange(3), xid=0).encode() + b".weight"
    width = rng.choice([1, 32, 64, 288])
    image.tensors.append(Weights(known, [width, 2], 0, bytes(8 * width)))
    return f"also {known!r}"


def other_shape(rng: random.Random, image: Image) -> str:
    if not image.tensors:
        return "nothing"
    tensor = rng.choice(image.tensors)
    old = list(tensor.shape)
    how = rng.randrange(6)
    if how == 0:
        tensor.shape.reverse()
    elif how == 1:
        tensor.shape[rng.randrange(len(old))] = rng.choice(_LONGS)
    elif how == 2:
        tensor.shape[rng.randrange(len(old))] += rng.choice([-1, 1, 32, -32])
    elif how == 3:
        tensor.shape.append(rng.choice([1, 1, 2, 0]))
    elif how == 4:
        tensor.n_dimensions = rng.choice([0, 1, 5, 2**31, 2**32 - 1])
    else:
        half = rng.choice([2, 4, 32])
        tensor.shape = [old[0] * half, *[max(1, extent // half) for extent in old[1:]]]
    return f"{tensor.name!r} from {old} to {tensor.shape}, {tensor.n_dimensions}"


def other_kind(rng: random.Random, image: Image) -> str:
    """Another ggml type, mostly with as many bytes as that type needs."""
    if not image.tensors:
        return "nothing"
    tensor = rng.choice(image.tensors)
    kind = rng.choice([*(int(one) for one in gguf.GGMLQuantizationType), 4, 99, 2**31, -1])
    layout = gguf.GGML_QUANT_SIZES.get(kind)  # type: ignore[call-overload]
    if layout and rng.random() < 0.85:
        values = 1
        for extent in tensor.shape:
            values *= extent
        size = values // layout[0] * layout[1]
        tensor.data = (tensor.data * (size // max(1, len(tensor.data)) + 1))[:size]
    tensor.kind = kind
    return f"{tensor.name!r} of type {kind}"


def other_place(rng: random.Random, image: Image) -> str:
    if not image.tensors:
        return "nothing"
    tensor = rng.choice(image.tensors)
    tensor.offset = rng.choice([0, 8, 32, 64, 4096, *_LONGS])
    return f"{tensor.name!r} at {tensor.offset}"


def other_order(rng: random.Random, image: Image) -> str:
    rng.shuffle(image.tensors)
    return "shuffled tensors"


def other_alignment(rng: random.Random, image: Image) -> str:
    value = rng.choice([0, 1, 3, 8, 16, 64, 4096, 2**20, 2**31, 2**32 - 1])
    image.entries = [entry for entry in image.entries if entry.key != b"general.alignment"]
    image.entries.append(scalar("general.alignment", ValueType.UINT32, value))
    if rng.random() < 0.6 and value and value <= 4096:
        image.alignment = value
    return f"alignment {value}, laid out with {image.alignment}"


def other_weights(rng: random.Random, image: Image) -> str:
    if not image.tensors:
        return "nothing"
    pattern = rng.choice(
        [struct.pack("<f", float("nan")), struct.pack("<f", 1e38), b"\xff", b"\x7f\x80", b"\x00"]
    )
    several = rng.choice([1, 1, 5, len(image.tensors)])
    for tensor in rng.sample(image.tensors, min(several, len(image.tensors))):
        tensor.data = (pattern * (len(tensor.data) // len(pattern) + 1))[: len(tensor.data)]
    return f"{several} tensors of {pattern!r}"


def split_keys(rng: random.Random, image: Image) -> str:
    for name in ("no", "count", "tensors.count"):
        image.entries = [entry for entry in image.entries if entry.key != b"split." + name.encode()]
        if rng.random() < 0.7:
            value = rng.choice([0, 1, 2, 3, len(image.tensors), 65_535])
            image.entries.append(
                scalar(f"split.{name}", rng.choice([ValueType.UINT16, ValueType.INT32]), value)
            )
    return "split keys"


MUTATIONS: dict[str, tuple[Mutation, int]] = {
    # with how often each is taken: the deeper a fault gets, the more often
    "count_of_pairs": (count_of_pairs, 1),
    "count_of_tensors": (count_of_tensors, 1),
    "version_or_magic": (version_or_magic, 1),
    "truncation": (truncation, 1),
    "flipped_bytes": (flipped_bytes, 3),
    "lost_key": (lost_key, 4),
    "doubled_key": (doubled_key, 1),
    "other_value": (other_value, 16),
    "other_type": (other_type, 8),
    "further_key": (further_key, 20),
    "other_tokenizer": (other_tokenizer, 8),
    "other_architecture": (other_architecture, 3),
    "lost_tensor": (lost_tensor, 3),
    "other_name": (other_name, 2),
    "further_tensor": (further_tensor, 3),
    "other_shape": (other_shape, 4),
    "other_kind": (other_kind, 10),
    "other_place": (other_place, 2),
    "other_order": (other_order, 1),
    "other_alignment": (other_alignment, 2),
    "other_weights": (other_weights, 6),
    "split_keys": (split_keys, 2),
}


def spoil(rng: random.Random, image: Image) -> tuple[Image, str]:
    """A bent copy, and what was done to it."""
    image = image.copy()
    names, weights = list(MUTATIONS), [weight for _, weight in MUTATIONS.values()]
    done = []
    for name in rng.choices(names, weights, k=rng.choice([1, 1, 1, 2, 2, 3])):
        done.append(f"{name}: {MUTATIONS[name][0](rng, image)}")
    return image, "; ".join(done)
