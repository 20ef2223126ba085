"""YAML files of other people: read within bounds, as plain values."""

from pathlib import Path
from typing import Any

import yaml

from carvana_tf import files
from carvana_tf.errors import UserError

# The parser's own, and what scalars raise in making: dates, numbers, keys that cannot be.
_NO_YAML = (
    yaml.YAMLError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    OverflowError,
    RecursionError,
)
_MOST_BYTES, _MOST_NODES, _MOST_DEPTH = 1 << 18, 10_000, 20  # the largest recipe here: 4 KB


def read_yaml(path: Path, what: str) -> Any:
    """The content of a YAML file whose aliases and depth are bounded.

    Args:
        path: The file.
        what: What it is, for messages ("--recipe").

    Raises:
        UserError: It cannot be read, or is no YAML.
    """
    try:
        text = files.read_text(path, _MOST_BYTES, what)
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _count_nodes(node, {}, ())
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except _NO_YAML as error:
        why = " ".join(str(error).split())[:300]
        raise UserError(f"{what} '{path}' is no YAML: {why}.") from error


def _count_nodes(node: yaml.Node, known: dict[int, int], above: tuple[int, ...]) -> int:
    """How many nodes there are where every alias is written out.

    Raises:
        ValueError: They are too many, too deep, or a node is inside itself.
    """
    if id(node) in above:
        raise ValueError("an alias stands for what it is inside of")
    if len(above) > _MOST_DEPTH:
        raise ValueError(f"it nests more than {_MOST_DEPTH} levels")
    if id(node) not in known:
        children = node.value if isinstance(node, yaml.CollectionNode) else ()
        pairs = isinstance(node, yaml.MappingNode)
        inner = [each for pair in children for each in pair] if pairs else children
        known[id(node)] = 1 + sum(_count_nodes(each, known, (*above, id(node))) for each in inner)
    if known[id(node)] > _MOST_NODES:
        raise ValueError(f"it has more than {_MOST_NODES:,} values, aliases written out")
    return known[id(node)]
