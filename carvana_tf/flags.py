"""absl flags from frozen dataclasses: one field is one flag.

A group of flags is a frozen dataclass whose fields are made by `option`. A script
calls `define(Group)` when it is imported and `read` on what that returned inside its
`main`. Library code takes the dataclasses and never sees absl.
"""

import contextlib
import dataclasses
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from absl import flags

from carvana_tf.errors import UserError

Group = TypeVar("Group")
# Where `define` puts flags: the program's own, except inside `apart`.
_registry = flags.FLAGS


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] | None = None,
    lower: float | None = None,
    upper: float | None = None,
    alias: str | None = None,
) -> Any:
    """A dataclass field that is also a flag of the same name.

    Args:
        default: The default value; None means "not given".
        help: One or two sentences for `--help`; bounds are added by absl.
        choices: The words allowed, for text flags.
        lower: The smallest number allowed.
        upper: The largest number allowed.
        alias: A second name for the same flag.
    """
    metadata = {"help": help, "choices": choices, "lower": lower, "upper": upper, "alias": alias}
    return dataclasses.field(default=default, metadata=metadata)


class Holder(Generic[Group]):
    """Reads one group of flags after they were parsed."""

    def __init__(self, group: type[Group], holders: dict[str, flags.FlagHolder]) -> None:
        self._group = group
        self._holders = holders

    def read(self) -> Group:
        """The group's values as an instance of its dataclass; call it inside `main`."""
        values = {name: holder.value for name, holder in self._holders.items()}
        return self._group(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

    def given(self, name: str) -> bool:
        """Whether the flag `name` stood on the command line or in a flag file."""
        return self._holders[name].present > 0


def define(group: type[Group], **defaults: Any) -> Holder[Group]:
    """Defines one flag for each field of a dataclass.

    Args:
        group: A frozen dataclass made of `option` fields of type bool, int, float, str,
            tuple[str, ...] (comma-separated), or one of them `| None`.
        **defaults: Defaults of this script that differ from the group's.
    """
    hints = typing.get_type_hints(group)
    holders = {
        field.name: _define_one(field, hints[field.name], defaults)
        for field in dataclasses.fields(group)  # type: ignore[arg-type]
    }
    return Holder(group, holders)


@contextlib.contextmanager
def apart() -> Iterator[flags.FlagValues]:
    """Inside, `define` fills the registry this yields, and not the program's.

    So a program can import a script to learn its flags, although both may define the
    same ones.
    """
    global _registry
    before, _registry = _registry, flags.FlagValues()
    try:
        yield _registry
    finally:
        _registry = before


def objection(registry: flags.FlagValues, arguments: Sequence[str]) -> str | None:
    """Why a script with these flags would refuse a command line, or None."""
    try:
        rest = registry(["script", *arguments])
    except flags.Error as error:
        return " ".join(str(error).split())
    return f"'{rest[1]}' is no flag; flags are written --name=value." if rest[1:] else None


def read_flagfile(path: Path) -> list[str]:
    """The arguments in a flag file, and in those it names.

    Raises:
        UserError: One cannot be read.
    """
    try:
        return flags.FlagValues().read_flags_from_files([f"--flagfile={path}"])
    except flags.CantOpenFlagFileError as error:
        told = str(error).removeprefix("ERROR:: ").rstrip(".")
        raise UserError(f"cannot read the flag file '{path}': {told}.") from error


def _define_one(field: dataclasses.Field, hint: Any, defaults: dict[str, Any]) -> flags.FlagHolder:
    meta = field.metadata
    default = defaults.get(field.name, field.default)
    kind = _without_none(hint)
    holder: flags.FlagHolder
    if meta["choices"]:
        holder = flags.DEFINE_enum(
            field.name, default, list(meta["choices"]), meta["help"], flag_values=_registry
        )
    elif kind is bool:
        holder = flags.DEFINE_boolean(field.name, default, meta["help"], flag_values=_registry)
    elif kind in (int, float):
        define_number: Any = flags.DEFINE_integer if kind is int else flags.DEFINE_float
        holder = define_number(
            field.name,
            default,
            meta["help"],
            lower_bound=meta["lower"],
            upper_bound=meta["upper"],
            flag_values=_registry,
        )
    elif typing.get_origin(kind) is tuple:
        holder = flags.DEFINE_list(
            field.name, default and list(default), meta["help"], flag_values=_registry
        )
    else:
        holder = flags.DEFINE_string(field.name, default, meta["help"], flag_values=_registry)
    if meta["alias"]:
        flags.DEFINE_alias(meta["alias"], field.name, flag_values=_registry)
    return holder


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return next(part for part in typing.get_args(hint) if part is not type(None))
    return hint


# Flags belong to the script that asked for them, so that its --help lists them.
flags.disclaim_key_flags()
