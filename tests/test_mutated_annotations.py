"""Exports with values replaced, dropped and doubled: read, or refused in one line."""

import copy
import json
import xml.sax.saxutils

import numpy as np
import pytest
import test_import_masks as exports

from carvana_tf.annotations import importing, reading
from carvana_tf.annotations.importing import Rules
from carvana_tf.data.images import write_photo
from carvana_tf.errors import UserError

VALUES = (
    *(None, True, -1, 0, 1.5, 10**400, float("nan"), float("inf"), "", "x", "../../x", "\ud800"),
    *([], {}, [[]], [None], {"": 0}, "0" * 400, [1, [2]], "counts", 1e308, 2**53),
)


def mutate(value, random):
    """A copy of a document, in which one part is something else."""
    parts: list[tuple] = []

    def visit(node):
        for key in node if isinstance(node, dict) else range(len(node)):
            parts.append((node, key))
            # Long lists of numbers are seldom what is wrong.
            if isinstance(node[key], (dict, list)) and (
                len(node[key]) < 20 or random.random() < 0.1
            ):
                visit(node[key])

    document = copy.deepcopy(value)
    if not isinstance(document, (dict, list)) or random.random() < 0.02:
        return random.choice(np.array(VALUES, object))
    visit(document)
    node, key = parts[random.integers(len(parts))]
    change = random.integers(4)
    if change == 0:
        del node[key]
    elif change == 1 and isinstance(node, list):
        node.append(copy.deepcopy(node[key]))
    elif change == 2:
        other, at = parts[random.integers(len(parts))]
        if isinstance(other, dict) or at < len(other):
            node[key] = copy.deepcopy(other[at])
    else:
        node[key] = VALUES[random.integers(len(VALUES))]
    return document


def mutate_text(text, random):
    """A copy of a text, in which one word or character is something else."""
    at, size = random.integers(len(text) + 1), random.integers(1, 12)
    word = str(VALUES[random.integers(len(VALUES))])
    choices = (word, "", text[at : at + size] * 2, "<", '"', "\0", "-", "9" * 30)
    new = choices[random.integers(len(choices))]
    new = xml.sax.saxutils.escape(new) if random.random() < 0.5 else new
    return text[:at] + new + text[at + size :]


@pytest.mark.parametrize("kind", ["coco", "labelme", "label_studio", "supervisely", "cvat", "yolo"])
def test_mutated_exports(tmp_path, kind):
    exports.CASES[kind][0](tmp_path / "export")
    photo = tmp_path / "photos/car_1.jpg"
    write_photo(photo, np.zeros((exports.HEIGHT, exports.WIDTH, 3), np.uint8))
    suffixes = (".json", ".xml", ".txt", ".yaml")
    (path, *others) = sorted(p for p in (tmp_path / "export").rglob("*") if p.suffix in suffixes)
    random = np.random.default_rng(0)
    read, refused = 0, 0
    for _ in range(300):
        target = [path, *others][random.integers(1 + len(others))]
        before = target.read_bytes()
        if target.suffix == ".json":
            text = json.dumps(mutate(json.loads(before), random))
        else:
            text = mutate_text(before.decode(), random)
        target.write_bytes(text.encode(errors="surrogatepass"))
        try:
            wanted = (reading.AUTO, kind)[random.integers(2)]
            _, export = reading.read(tmp_path / "export", wanted)
            counts = importing.count_classes(export)
            found, _ = importing.pair(export, {"car_1": photo}, "the export")
            rules = Rules(importing.choose_classes((), (), counts))
            for annotated in found.values():
                mask = importing.draw(annotated, photo, rules)
                assert (mask.shape, mask.dtype) == ((exports.HEIGHT, exports.WIDTH), np.bool_)
            read += 1
        except UserError as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 600, str(error)
            refused += 1
        target.write_bytes(before)
    assert min(read, refused) >= 10
