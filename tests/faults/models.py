"""Hostile and damaged model files: what every reader of models must refuse in one line.

`python tests/faults/models.py` makes 300 files, reads each as prediction and training do, and
prints what became of them. The files depend on their number alone.
"""

import copy
import io
import json
import os
import random
import struct
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import keras
from faults.memory import growth
from faults.results import Result

from carvana_tf.errors import UserError
from carvana_tf.inference.engines.keras import load as keras_load
from carvana_tf.models import checkpoint, model_file, weights

CONFIG, METADATA, WEIGHTS = "config.json", "carvana_tf.json", "model.weights.h5"
SECRET = "/etc/hostname"


class Base(NamedTuple):
    """A sound model file, its members, and the same weights in files of their own."""

    model: keras.Model
    members: dict[str, bytes]
    weights_h5: bytes
    legacy_h5: bytes


def make_base(folder: Path) -> Base:
    """One tiny network with all that is attacked: nesting, metadata, several layers."""
    keras.utils.set_random_seed(0)
    photo = keras.Input((None, None, 3), name="input_1")
    x = keras.layers.Rescaling(1 / 255, name="normalise")(photo)
    x = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="first")(x)
    down = keras.layers.MaxPooling2D(2)(keras.layers.BatchNormalization()(x))
    x = keras.layers.Concatenate()([x, keras.layers.UpSampling2D(2)(down)])
    mask = keras.layers.Conv2D(1, 1, activation="sigmoid", dtype="float32", name="mask")(x)
    model = keras.Model(photo, mask, name="simple_unet")
    metadata = {
        "network": "simple_unet",
        "stride": 8,
        "size_policy": "pad",
        "input_height": 0,
        "input_width": 0,
        "stacked_channels": 0,
        "fold": 0,
        "training_groups": ["a", "b"],
        "group_pattern": r"(.+)_\d+$",
        "scores": {"val_dice": 0.9},
    }
    path = model_file.save(model, folder / "base.keras", metadata)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    model.save_weights(folder / "base.weights.h5")
    model.save(folder / "base.h5")
    return Base(
        model,
        members,
        (folder / "base.weights.h5").read_bytes(),
        (folder / "base.h5").read_bytes(),
    )


# --- archives ---


def pack(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method, compresslevel=1) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return stream.getvalue()


def changed(base: Base, name: str, data: bytes) -> bytes:
    return pack(base.members | {name: data})


def strange_member(base: Base, chance: random.Random) -> bytes:
    name = chance.choice(
        [
            "../../evil",
            "/etc/cron.d/evil",
            "assets/vocabulary.txt",
            "C:\\evil",
            "model.pkl",
            "a/",
            "x" * 3000,
            "\x1b[31mred",
            "..",
            "config.json/",
            "CONFIG.JSON",
            "\u202egnp.sarek",
        ]
    )
    return changed(base, name, b"x" * chance.randrange(1000))


def twice(base: Base, chance: random.Random) -> bytes:
    stream = io.BytesIO(pack(base.members))
    name = chance.choice(list(base.members))
    with zipfile.ZipFile(stream, "a") as archive:
        archive.fp.seek(0, 2)
        archive.writestr(zipfile.ZipInfo(name), b"{}")
    return stream.getvalue()


def bomb(base: Base, chance: random.Random) -> bytes:
    name = chance.choice([CONFIG, METADATA, WEIGHTS, "metadata.json"])
    blank = chance.choice([b"\0", b" ", b"["]) * (100 << 20)
    return pack(base.members | {name: blank}, zipfile.ZIP_DEFLATED)


def false_size(base: Base, chance: random.Random) -> bytes:
    """A member that declares up to 4 GB, in the archive's directory, its own header or both."""
    data = bytearray(pack(base.members))
    size = struct.pack("<I", chance.choice([3_000_000_000, 0xFFFFFFFE, 0, 1, 100_000_000]))
    places = [(b"PK\x01\x02", 24), (b"PK\x01\x02", 20), (b"PK\x03\x04", 22)]
    for mark, offset in chance.sample(places, chance.randint(1, 3)):
        starts = [i for i in range(len(data)) if data.startswith(mark, i)]
        start = chance.choice(starts)
        data[start + offset : start + offset + 4] = size
    return bytes(data)


def false_header(base: Base, chance: random.Random) -> bytes:
    """Encrypted, unknown methods, offsets into nowhere."""
    data = bytearray(pack(base.members))
    start = chance.choice([i for i in range(len(data)) if data.startswith(b"PK\x01\x02", i)])
    offset, value = chance.choice(
        [(8, b"\x01\x00"), (10, b"\x63\x00"), (42, b"\xff\xff\xff\x7f"), (28, b"\xff\xff")]
    )
    data[start + offset : start + offset + len(value)] = value
    return bytes(data)


def damaged(data: bytes, chance: random.Random) -> bytes:
    way = chance.choice(["cut", "flip", "hole", "noise", "append", "prepend"])
    place = chance.randrange(len(data))
    if way == "cut":
        return data[:place]
    if way == "append":
        return data + chance.randbytes(1000)
    if way == "prepend":
        return chance.randbytes(1000) + data
    size = {"flip": 1, "hole": 512, "noise": 64}[way]
    piece = data[place : place + size]
    new = {
        "flip": bytes(byte ^ (1 << chance.randrange(8)) for byte in piece),
        "hole": bytes(len(piece)),
        "noise": chance.randbytes(len(piece)),
    }[way]
    return data[:place] + new + data[place + len(piece) :]


def damaged_archive(base: Base, chance: random.Random) -> bytes:
    return damaged(pack(base.members), chance)


# --- the network's description ---


def layer(name: str, config: dict, module: str | None = "keras.layers", **more: object) -> dict:
    return {"module": module, "class_name": name, "config": config, "registered_name": None} | more


CODE = [
    layer(
        "Lambda",
        {"name": "evil", "function": {"class_name": "__lambda__", "config": {"value": "4wEA"}}},
    ),
    layer("Lambda", {"name": "old", "function": ["4wEAAAAA", None, None]}),
    layer(
        "Lambda",
        {"function": {"module": "keras.utils", "class_name": "function", "config": "get_file"}},
    ),
    layer("TFSMLayer", {"filepath": "/tmp/saved"}),
    layer("StringLookup", {"vocabulary": "/etc/passwd"}),
    layer("TextVectorization", {"vocabulary": "file:///etc/passwd"}),
    layer("TorchModuleWrapper", {"module": "gASV"}),
    layer("JaxLayer", {"call_fn": "x"}),
    layer("system", {"command": "id"}, "os"),
    layer("Popen", {"args": ["id"]}, "subprocess"),
    layer("Attack", {}, "my.package", registered_name="my>Attack"),
    layer("Conv2D", {"filters": 1}, registered_name="evil>Conv2D"),
    layer("Conv2D", {"filters": 1}, "keras.src.utils.file_utils"),
    layer("load_model", {"filepath": "x"}, "keras.models"),
    layer("Functional", {}, "os.path"),
    layer("RNN", {"cell": layer("Attack", {}, "a.b")}),
    {"class_name": "function", "module": "keras.utils", "config": "get_file"},
    {"class_name": "function", "module": "builtins", "config": "eval", "registered_name": "eval"},
    {
        "class_name": "__typespec__",
        "module": "tensorflow",
        "spec_name": "TensorSpec",
        "registered_name": None,
        "config": [],
    },
    {"class_name": 7, "config": {}},
    {"class_name": ["Conv2D"], "module": {}, "config": {}},
]


def config_of(base: Base) -> dict:
    return json.loads(base.members[CONFIG])


def code(base: Base, chance: random.Random) -> bytes:
    """Something that would run code or read files, somewhere in the description."""
    config, evil = config_of(base), copy.deepcopy(chance.choice(CODE))
    layers = config["config"]["layers"]
    place = chance.randrange(3)
    if place == 0:
        layers.insert(1, evil)
    elif place == 1:
        layers[2]["config"][chance.choice(["activation", "kernel_initializer", "dtype"])] = evil
    else:
        layers[-1]["inbound_nodes"][0]["kwargs"] = {"anything": evil}
    return changed(base, CONFIG, json.dumps(config).encode())


def nodes(value: object, path: tuple = ()) -> Iterator[tuple]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from nodes(item, (*path, key))


JUNK = [
    None,
    -1,
    0,
    10**12,
    1e308,
    2**64,
    "x",
    "",
    [],
    {},
    True,
    [[]],
    {"a": 1},
    "\x1b[31m",
    -(10**9),
]


def put(value: object, path: tuple, new: object) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new


def junk_config(base: Base, chance: random.Random) -> bytes:
    config = config_of(base)
    for _ in range(chance.randint(1, 3)):
        put(config, chance.choice(list(nodes(config))), copy.deepcopy(chance.choice(JUNK)))
    return changed(base, CONFIG, json.dumps(config).encode())


NUMBERS = [
    (2, "filters", [10**9, 2**20, 10**6, -4, 0, 1e9]),
    (2, "kernel_size", [[4096, 4096], [10**6, 1], [0, 0], [-3, 3]]),
    (2, "strides", [[0, 0], [4096, 4096], [-1, 1]]),
    (2, "dilation_rate", [[4096, 4096], [0, 1]]),
    (2, "groups", [0, -1, 7]),
    (4, "pool_size", [[4096, 4096], [0, 0]]),
    (5, "size", [[4096, 4096], [10**6, 10**6], [0, 0], [1024, 1024]]),
    (
        0,
        "batch_shape",
        [
            [None, 10**6, 10**6, 3],
            [10**9, None, None, 3],
            [None, None, None, 10**7],
            [],
            [None, 0, 0, 3],
            None,
        ],
    ),
    (3, "axis", [99, -99, [0, 1, 2, 3]]),
]


def numbers(base: Base, chance: random.Random) -> bytes:
    """Layers of a size that no machine has."""
    config = config_of(base)
    at, name, values = chance.choice(NUMBERS)
    config["config"]["layers"][at]["config"][name] = chance.choice(values)
    return changed(base, CONFIG, json.dumps(config).encode())


def deep(base: Base, chance: random.Random) -> bytes:
    depth = chance.choice([150, 900, 5_000, 100_000])
    opened, closed = chance.choice([('{"a":', "}"), ("[", "]")])
    text = opened * depth + "0" + closed * depth
    member = chance.choice([CONFIG, METADATA, "metadata.json"])
    if chance.random() < 0.5 and member == CONFIG:
        text = json.dumps(config_of(base))[:-1] + f', "more": {text}}}'
    return changed(base, member, text.encode())


def many_layers(base: Base, chance: random.Random) -> bytes:
    config, count = config_of(base), chance.choice([6_000, 40_000])
    one = config["config"]["layers"][1]
    config["config"]["layers"] += [one | {"name": f"l{i}"} for i in range(count)]
    return changed(base, CONFIG, json.dumps(config).encode()[: 15 << 20])


def no_json(base: Base, chance: random.Random) -> bytes:
    member = chance.choice([CONFIG, METADATA, "metadata.json"])
    texts = [b"", b"null", b"[]", b"\xff\xfe\x00", b"{", b'{"a": ' + b"9" * 5000 + b"}", b'"x"']
    return changed(base, member, chance.choice(texts))


# --- our metadata ---

VALUES = {
    "input_height": [200_000, -1, "256", 1e3, True, [1], 2**70],
    "input_width": [200_000, {}, "x"],
    "size_policy": ["resize", "stretch", 7, ["pad"]],
    "stride": [0, -8, 3.5, "8", 10**9, 7],
    "stacked_channels": [-3, 10**6, "2", 5],
    "fold": [-1, "x", [0], 1.5, {}],
    "training_groups": ["all", 7, [1, 2], {"a": 1}],
    "group_pattern": [
        "(a+)+$",
        "(",
        "",
        "x" * 5000,
        r"((.*)*)*!",
        7,
        "(.*)(.*)(.*)(.*)(.*)(.*)x",
        r"(a|aa)+$",
    ],
    "network": ["ghost", 7, [], "\x1b[31m"],
    "clahe": ["yes", 1, []],
    "scores": [[], 7, "good"],
    "preprocessing": [7, []],
    "unknown_origin": ["no", 0],
    "labelled_groups_digest": [7, []],
    "val_groups": [7, "x"],
}


def false_metadata(base: Base, chance: random.Random) -> bytes:
    metadata = json.loads(base.members[METADATA])
    name = chance.choice(list(VALUES))
    metadata[name] = chance.choice(VALUES[name])
    return changed(base, METADATA, json.dumps(metadata).encode())


# --- HDF5 ---


def own_array(file: h5py.File) -> tuple[h5py.Group, str]:
    """The group and name of the first convolution's kernel."""
    found: list[str] = []
    file.visit(found.append)
    names = [n for n in found if isinstance(file[n], h5py.Dataset) and file[n].ndim == 4]
    parent, _, name = names[0].rpartition("/")
    return file[parent], name


def external_storage(file: h5py.File, chance: random.Random) -> None:
    group, name = own_array(file)
    shape = group[name].shape
    del group[name]
    group.create_dataset(name, shape, "f4", external=[(SECRET, 0, 4 * int(np.prod(shape)))])


def external_link(file: h5py.File, chance: random.Random) -> None:
    group, name = own_array(file)
    del group[name]
    group[name] = h5py.ExternalLink(chance.choice([SECRET, "other.h5", "../x.h5"]), "/data")


def soft_link(file: h5py.File, chance: random.Random) -> None:
    group, name = own_array(file)
    del group[name]
    group[name] = h5py.SoftLink(chance.choice(["/nowhere", "/", group.name, "../.."]))


def virtual(file: h5py.File, chance: random.Random) -> None:
    group, name = own_array(file)
    shape = group[name].shape
    layout = h5py.VirtualLayout(shape=shape, dtype="f4")
    layout[...] = h5py.VirtualSource(SECRET, "data", shape=shape)
    del group[name]
    group.create_virtual_dataset(name, layout)


def huge(file: h5py.File, chance: random.Random) -> None:
    group, name = own_array(file)
    del group[name]
    kinds = [{}, {"chunks": (64, 64)}, {"chunks": (64, 64), "compression": "gzip"}]
    side = chance.choice([1 << 20, 1 << 15, 1 << 25])
    group.create_dataset(name, (side, side), chance.choice(["f4", "u1"]), **chance.choice(kinds))


def bomb_array(file: h5py.File, chance: random.Random) -> None:
    group, name = own_array(file)
    del group[name]
    zeros = np.zeros((5000, 5000), "f4")
    group.create_dataset(name, data=zeros, chunks=(500, 500), compression="gzip", shuffle=True)


def odd_type(file: h5py.File, chance: random.Random) -> None:
    group, name = own_array(file)
    shape = group[name].shape
    del group[name]
    kind = chance.choice(["text", "vlen", "compound", "reference", "named", "complex", "enum"])
    if kind == "text":
        group.create_dataset(name, shape, h5py.string_dtype())
    elif kind == "vlen":
        group.create_dataset(name, shape, h5py.vlen_dtype("f4"))
    elif kind == "compound":
        group.create_dataset(name, shape, np.dtype([("a", "f4"), ("b", "f8")]))
    elif kind == "reference":
        group.create_dataset(name, shape, h5py.ref_dtype)
    elif kind == "named":
        group[name] = np.dtype("f4")
    elif kind == "complex":
        group.create_dataset(name, shape, "c8")
    else:
        group.create_dataset(name, shape, h5py.enum_dtype({"a": 1}))


def linked_twice(file: h5py.File, chance: random.Random) -> None:
    group, name = own_array(file)
    if chance.random() < 0.5:
        group["1000"] = group[name]
    else:
        group["again"] = file["/"]


def odd_shape(file: h5py.File, chance: random.Random) -> None:
    group, name = own_array(file)
    del group[name]
    shape = chance.choice([(), (0,), (1,), (3, 3), (3, 3, 3, 4, 1), (1, 3, 3, 4), (3, 3, 0, 4)])
    group.create_dataset(name, data=np.ones(shape, "f4"))


def no_numbers(file: h5py.File, chance: random.Random) -> None:
    group, name = own_array(file)
    values = group[name][()]
    values.flat[chance.randrange(values.size)] = chance.choice([np.nan, np.inf, -np.inf])
    group[name][...] = values


def missing(file: h5py.File, chance: random.Random) -> None:
    found: list[str] = []
    file.visit(found.append)
    del file[chance.choice(found)]


def odd_attribute(file: h5py.File, chance: random.Random) -> None:
    found: list[str] = ["/"]
    file.visit(found.append)
    item = file[chance.choice(found)]
    name = chance.choice(["layer_names", "weight_names", "name", "dtype", "layer_names0"])
    values = [
        7,
        "../../x",
        np.array([b"../x", b"/"]),
        np.zeros((50, 50)),
        "bfloat16",
        h5py.Empty("f"),
    ]
    item.attrs[name] = chance.choice(values)


ARRAYS = (external_storage, external_link, soft_link, virtual, huge, bomb_array, odd_type)
ARRAYS += (linked_twice, odd_shape, no_numbers, missing, odd_attribute)


def edited(data: bytes, edit: Callable, chance: random.Random) -> bytes:
    stream = io.BytesIO(data)
    with h5py.File(stream, "r+") as file:
        edit(file, chance)
    return stream.getvalue()


def in_hdf5(edit: Callable) -> Callable[[Base, random.Random], tuple[str, bytes]]:
    def make(base: Base, chance: random.Random) -> tuple[str, bytes]:
        suffix = chance.choice([".keras", ".weights.h5", ".h5"])
        if suffix == ".keras":
            return suffix, changed(base, WEIGHTS, edited(base.members[WEIGHTS], edit, chance))
        data = base.legacy_h5 if suffix == ".h5" else base.weights_h5
        return suffix, edited(data, edit, chance)

    return make


def damaged_hdf5(base: Base, chance: random.Random) -> tuple[str, bytes]:
    """Damage inside, which the archive's checksum does not show."""
    if chance.random() < 0.4:
        return ".keras", changed(base, WEIGHTS, damaged(base.members[WEIGHTS], chance))
    suffix = chance.choice([".weights.h5", ".h5"])
    return suffix, damaged(base.legacy_h5 if suffix == ".h5" else base.weights_h5, chance)


def _archived(make: Callable[[Base, random.Random], bytes]) -> Callable:
    return lambda base, chance: (".keras", make(base, chance))


ARCHIVES = (strange_member, twice, bomb, false_size, false_header, damaged_archive, code)
ARCHIVES += (junk_config, numbers, deep, many_layers, no_json, false_metadata)
KINDS: dict[str, Callable[[Base, random.Random], tuple[str, bytes]]] = {
    **{make.__name__: _archived(make) for make in ARCHIVES},
    **{edit.__name__: in_hdf5(edit) for edit in ARRAYS},
    "damaged_hdf5": damaged_hdf5,
}
# Whatever their number: nothing of these may be loaded.
ALWAYS_REFUSED = frozenset(
    """
    strange_member twice bomb code deep many_layers external_storage external_link soft_link
    virtual huge bomb_array odd_type linked_twice no_numbers
    """.split()  # noqa: SIM905
)


def make(base: Base, number: int, folder: Path) -> tuple[str, Path]:
    """Writes the file of a number; returns its kind and path."""
    kind = list(KINDS)[number % len(KINDS)]
    suffix, data = KINDS[kind](base, random.Random(number))
    path = folder / f"{number:03d}-{kind}{suffix}"
    path.write_bytes(data)
    return kind, path


# --- readers ---


def as_prediction(path: Path) -> None:
    """What predict_multithreaded.py does with --weights, for one photo."""
    source = checkpoint.read(path, checkpoint.NetworkOptions(network="simple_unet"))
    engine = keras_load(source, "cpu:0", "float32")
    engine.predict_uint8(np.zeros((1, 16, 16, engine.channels), np.uint8))


def as_training(path: Path, base: Base) -> None:
    """What train.py does with --weights."""
    found = weights.read_layer_weights(path)
    for one in base.model.layers:
        if one.name in found and [a.shape for a in found[one.name]] == [
            w.shape for w in one.get_weights()
        ]:
            one.set_weights(found[one.name])


def read(kind: str, path: Path, reader: Callable[[Path], None]) -> Result:
    """Reads a file and says what became of it."""
    start, outcome, message = time.perf_counter(), "loaded", ""
    with growth() as held:
        try:
            reader(path)
        except UserError as error:
            message = str(error)
            named = path.name in message and "\n" not in message and message.isprintable()
            outcome = "refused" if named else "refused, but not by name"
        except BaseException as error:
            outcome, message = "traceback", f"{type(error).__name__}: {error}"[:300]
    seconds = time.perf_counter() - start
    return Result(kind, path.name, outcome, message, seconds, held.megabytes)


def run(numbers_: range, folder: Path) -> Iterator[Result]:
    """Makes files, and reads each as prediction and as training does."""
    base = make_base(folder)
    for number in numbers_:
        kind, path = make(base, number, folder)
        yield read(kind, path, as_prediction)
        yield read(kind, path, lambda p: as_training(p, base))
        path.unlink()


def main() -> int:
    """Prints a table by kind, and each file that was not handled as it should be."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    with tempfile.TemporaryDirectory() as folder:
        results = list(run(range(count), Path(folder)))
    print(f"{count} files, read twice each; pid {os.getpid()}")
    print(
        f"{'kind':<18}{'files':>6}{'refused':>9}{'loaded':>8}{'wrong':>7}{'s max':>8}{'MB max':>8}"
    )
    for kind in KINDS:
        own = [result for result in results if result.kind == kind]
        if own:
            outcomes = Counter(result.outcome for result in own)
            wrong = len(own) - outcomes["refused"] - outcomes["loaded"]
            counts = f"{outcomes['refused']:>9}{outcomes['loaded']:>8}{wrong:>7}"
            most = f"{max(r.seconds for r in own):>8.2f}{max(r.megabytes for r in own):>8.0f}"
            print(f"{kind:<18}{len(own) // 2:>6}{counts}{most}")
    bad = [r for r in results if r.outcome not in ("refused", "loaded")]
    bad += [r for r in results if r.outcome == "loaded" and r.kind in ALWAYS_REFUSED]
    for result in bad:
        print(f"{result.outcome}: {result.name}: {result.message}")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
