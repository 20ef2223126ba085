"""absl flags from frozen dataclasses: one field is one flag.

A group of flags is a frozen dataclass whose fields are made by `option`. `parse` makes
instances of groups out of a command line. Library code takes these and never sees absl.
"""

import collections
import dataclasses
import math
import os
import shutil
import textwrap
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from absl import flags

from carvana_tf import files
from carvana_tf.data import names
from carvana_tf.errors import Problems, UserError
from carvana_tf.filenames import DATASET

Group = TypeVar("Group")

_FLAGFILE = ("--flagfile=", "-flagfile=")
_MOST_BYTES, _MOST_LINES, _MOST_NESTED = 1 << 20, 10_000, 10


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] | None = None,
    lower: float | None = None,
    upper: float | None = None,
    alias: str | None = None,
    advanced: bool = False,
    key: str | None = None,
    inside: bool = False,
) -> Any:
    """A dataclass field that is also a flag of the same name.

    Args:
        default: The default value; None means that the flag is not set.
        help: One or two sentences for `--help`, without choices, bounds and default.
        choices: The words allowed, for text flags.
        lower: The smallest number allowed.
        upper: The largest number allowed.
        alias: A second name for the same flag.
        advanced: Whether only `--helpfull` shows it.
        key: What is remembered of a dataset under this key stands for the default.
        inside: Whether that is a path inside --dataset_dir, and the flag a path of its own.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "lower": lower,
        "upper": upper,
        "alias": alias,
        "advanced": advanced,
        "key": key,
        "inside": inside,
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Needs:
    """Flags that count only where other flags allow it.

    A group of flags lists these in its class attribute `NEEDS`, next to the options.

    Attributes:
        flags: Their names.
        holds: Whether they count, from the group's values.
        otherwise: Where they do not, as "without --lr_schedule=cosine".
    """

    flags: tuple[str, ...]
    holds: Callable[[Any], bool]
    otherwise: str


class Configuration:
    """What belongs together: a frozen dataclass, each field of which is a group of flags.

    No flag is in two of the groups. `NEEDS` of the configuration has the rules between groups.
    """

    @classmethod
    def groups(cls) -> dict[str, type]:
        """The groups by the names of their fields."""
        hints = typing.get_type_hints(cls)
        return {field.name: hints[field.name] for field in dataclasses.fields(cls)}  # type: ignore[arg-type]

    @classmethod
    def of(cls, **values: Any) -> Self:
        """The defaults, but for some flags.

        Raises:
            TypeError: There is no such flag.
        """
        return cls(**{name: group() for name, group in cls.groups().items()}).replace(**values)

    def replace(self, **values: Any) -> Self:
        """A copy in which some flags have other values.

        Raises:
            TypeError: There is no such flag.
        """
        changed = {}
        for name in self.groups():
            group = getattr(self, name)
            own = {n: values.pop(n) for n in _names(group) if n in values}
            if own:
                changed[name] = dataclasses.replace(group, **own)
        if values:
            raise TypeError(f"no flag is called {', '.join(values)}")
        return dataclasses.replace(self, **changed)  # type: ignore[type-var]

    def flat(self) -> dict[str, Any]:
        """The values of all flags by name."""
        groups = [getattr(self, name) for name in self.groups()]
        return {name: getattr(group, name) for group in groups for name in _names(group)}


def leaves(group: type) -> list[type]:
    """The groups of a configuration; of a group, itself."""
    return list(group.groups().values()) if issubclass(group, Configuration) else [group]


def defaults(group: type) -> dict[str, Any]:
    """The defaults of a group's or a configuration's flags by name."""
    return {
        field.name: field.default for leaf in leaves(group) for field in dataclasses.fields(leaf)
    }


def _names(group: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(group)]


def refuse_unused(group: Any, set_flags: Collection[str] = ()) -> None:
    """Ensures that every value that somebody has chosen has an effect.

    Args:
        group: An instance of a group or a configuration; its class may have `NEEDS`.
        set_flags: Flags that stood on the command line. A value was chosen where it differs from
            the default, or where its flag was set to a default that is not empty.

    Raises:
        UserError: One has none.
    """
    values = dataclasses.asdict(group)
    if isinstance(group, Configuration):
        for name in group.groups():
            refuse_unused(getattr(group, name), set_flags)
        values = group.flat()
    usual = defaults(type(group))
    for needs in getattr(group, "NEEDS", ()):
        if needs.holds(group):
            continue
        for name in needs.flags:
            value = values[name]
            if value != usual[name] or (value and name in set_flags):
                raise UserError(
                    f"--{_written(name, value)} has no effect {needs.otherwise}; drop one of the "
                    "two, or give what it needs."
                )


def _written(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return name if value else f"no{name}"
    return f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}"


class Values:
    """The values of parsed flags: `values[Group]` is an instance of the dataclass.

    Attributes:
        remembered: Flags whose value is that of the dataset's description, by name.
        arguments: The command line.
    """

    def __init__(
        self,
        groups: Iterable[type],
        registry: flags.FlagValues,
        remembered: Collection[str] = (),
        arguments: Sequence[str] = (),
    ) -> None:
        """Reads all groups.

        Args:
            groups: Dataclasses.
            registry: Has their flags, with their values.
            remembered: Flags whose values are of the dataset's description. Those that have no
                effect with the others go back to their defaults.
            arguments: The command line that the registry has parsed.

        Raises:
            UserError: A flag has no effect with the others.
        """
        problems = Problems()
        self.arguments = tuple(arguments)
        self._registry = registry
        self._remembered = dict.fromkeys(remembered)
        self._groups: dict[type, Any] = {
            group: problems.attempt(self._read, group) for group in groups
        }
        problems.raise_any()
        self.remembered = {name: self.flag(name) for name in self._remembered}

    def __getitem__(self, group: type[Group]) -> Group:
        return self._groups[group]

    def __contains__(self, name: str) -> bool:
        return name in self._registry

    def flag(self, name: str) -> Any:
        """The value of a flag by name."""
        return self._registry[name].value

    def is_set(self, name: str) -> bool:
        """Whether the flag stood on the command line or in a flag file."""
        return self._registry[name].present > 0

    def is_default(self, name: str) -> bool:
        """Whether the flag has its default value, wherever that is from."""
        return self._registry[name].value == self._registry[name].default

    def _read(self, group: type) -> Any:
        read: Any
        if issubclass(group, Configuration):
            read = group(**{name: self._read(each) for name, each in group.groups().items()})
        else:
            values = {name: self._registry[name].value for name in defaults(group)}
            read = group(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
        given = set(filter(self.is_set, defaults(group)))
        read = self._without_idle(read, given)
        refuse_unused(read, given)
        return read

    def _without_idle(self, read: Any, given: Collection[str]) -> Any:
        """A group in which remembered values that have no effect are the defaults again."""
        if hasattr(read, "forgets"):
            read = self._forget(read, read.forgets(given))
        for needs in getattr(read, "NEEDS", ()):
            if not needs.holds(read):
                read = self._forget(read, needs.flags)
        return read

    def _forget(self, read: Any, names: Iterable[str]) -> Any:
        """A group in which remembered values of some flags are the defaults again."""
        usual, change = defaults(type(read)), {}
        for name in self._remembered.keys() & names:
            del self._remembered[name]
            self._registry[name].value = self._registry[name].default
            change[name] = usual[name]
        if isinstance(read, Configuration):
            return read.replace(**change)
        return dataclasses.replace(read, **change)


class _BooleanParser(flags.BooleanParser):
    """Understands what Python's `strtobool` does, as published command lines have it."""

    WORDS: ClassVar[dict[str, bool]] = {
        **dict.fromkeys(("y", "yes", "t", "true", "on", "1"), True),
        **dict.fromkeys(("n", "no", "f", "false", "off", "0"), False),
    }

    def parse(self, argument: str | bool | int) -> bool:
        """The value.

        Raises:
            ValueError: The word is none of these.
        """
        word = str(argument).lower()
        if word not in self.WORDS:
            raise ValueError(f"'{argument}' is neither yes nor no; write true or false")
        return self.WORDS[word]

    def knows(self, word: str) -> bool:
        """Whether a word is a value."""
        return word.lower() in self.WORDS


class _ListParser(flags.ListParser):
    """A comma-separated list, whose values may be any file name."""

    def parse(self, argument: str | Sequence[str]) -> list[str]:
        """The values.

        Raises:
            ValueError: A quotation mark has no end.
        """
        if not isinstance(argument, str):
            return list(argument)
        try:
            return names.split_list(argument)
        except UserError as error:
            raise ValueError(str(error)) from error


class _FiniteParser(flags.FloatParser):
    """absl takes nan for a number within any bounds, and inf for one above them."""

    def convert(self, argument: str | float) -> float:
        """The number.

        Raises:
            ValueError: It is none, or not finite.
        """
        value = super().convert(argument)
        if not math.isfinite(value):
            raise ValueError(f"{argument} is not a finite number")
        return value


def define(group: type, registry: flags.FlagValues) -> None:
    """Defines one flag for each field of a dataclass.

    Args:
        group: A frozen dataclass made of `option` fields of type bool, int, float, str,
            tuple[str, ...] (comma-separated), or one of them `| None`.
        registry: Gets the flags.
    """
    hints = typing.get_type_hints(group)
    for field in dataclasses.fields(group):
        _define_one(field, hints[field.name], registry)


def parse(
    groups: Iterable[type],
    arguments: Sequence[str],
    *further: flags.Flag,
    describe: Callable[[Path], Mapping[str, Any]] | None = None,
) -> Values:
    """The values of a command line.

    Args:
        groups: The dataclasses whose flags it may have.
        arguments: Without the program's name.
        further: Other flags it may have.
        describe: Gives, by key, what is remembered of the dataset in a folder: the values of
            options with a `key` that the command line does not set.

    Raises:
        UserError: A flag is unknown, has no such value, or has no effect with the others; or a
            flag file cannot be read.
    """
    registry = _registry_of(groups := tuple(groups))
    for flag in further:
        registry[flag.name] = flag
    try:
        check_flagfiles(arguments)
        rest = registry(["program", *joined(registry, arguments)])
        if len(rest) > 1:
            raise flags.Error(f"'{rest[1]}' is no flag; flags are written --name=value.")
    except flags.Error as error:
        raise UserError(f"{' '.join(str(error).split())} (--help lists the flags)") from error
    remembered = _recall(groups, registry, describe) if describe is not None else []
    return Values(groups, registry, remembered, arguments)


def _recall(
    groups: Iterable[type],
    registry: flags.FlagValues,
    describe: Callable[[Path], Mapping[str, Any]],
) -> list[str]:
    """Gives flags that are not set the values of the dataset's description; returns their names."""
    every = [field for g in groups for leaf in leaves(g) for field in dataclasses.fields(leaf)]
    unset = [f for f in every if f.metadata["key"] and not registry[f.name].present]
    if not unset or "dataset_dir" not in registry:
        return []
    folder = str(registry["dataset_dir"].value)
    known = describe(Path(folder))
    found = []
    for field in unset:
        value = known.get(field.metadata["key"])
        if value is None:
            continue
        if field.metadata["inside"]:
            value = os.path.join(folder, value)
        listed = isinstance(registry[field.name].parser, flags.ListParser)
        registry[field.name].value = [value] if listed else value
        found.append(field.name)
    return found


def _registry_of(groups: Iterable[type]) -> flags.FlagValues:
    registry = flags.FlagValues()
    for group in groups:
        for leaf in leaves(group):
            define(leaf, registry)
    return registry


def joined(registry: flags.FlagValues, arguments: Sequence[str]) -> list[str]:
    """Arguments in which each flag has its values in its own, as absl wants it.

    Published command lines have `--dirs_to_ensemble a b c` and `--use_crop yes`.
    """
    result: list[str] = []
    rest = collections.deque(arguments)
    while rest:
        argument = rest.popleft()
        if argument == "--":
            return [*result, argument, *rest]
        name, equals, value = argument.lstrip("-").partition("=")
        flag = registry[name] if argument.startswith("-") and name in registry else None
        parser = flag.parser if flag is not None else None
        if isinstance(parser, flags.ListParser):
            values = [value] if equals else []
            while rest and not rest[0].startswith("-"):
                values.append(rest.popleft())
            if len(values) > 1:
                values = [names.join_list(_split(one)) for one in values]
            argument = f"--{name}={','.join(values)}" if values else argument
        elif isinstance(parser, _BooleanParser) and not equals and rest and parser.knows(rest[0]):
            argument = f"--{name}={rest.popleft()}"
        result.append(argument)
    return result


def _split(text: str) -> list[str]:
    try:
        return names.split_list(text)
    except UserError:  # the parser of the flag reports it
        return [text]


def find(arguments: Sequence[str], name: str) -> str:
    """The value of one flag of a command line, the last where it is there more often; "" without.

    Raises:
        UserError: A flag file cannot be read.
    """
    check_flagfiles(arguments)
    try:
        lines = flags.FlagValues().read_flags_from_files(list(arguments))
    except flags.Error:
        return ""  # `parse` reports it
    value = ""
    for argument, following in zip(lines, [*lines[1:], ""], strict=False):
        flag, equals, rest = argument.partition("=")
        if flag in (f"--{name}", f"-{name}"):
            value = rest if equals else following
    return value


def is_on(arguments: Sequence[str], name: str) -> bool:
    """Whether arguments switch a boolean flag on, the last where it is there more often.

    Args:
        arguments: Each with its value after "=", as of `read_flagfile`.
        name: The flag's, whose default is off.
    """
    on = False
    for argument in arguments:
        flag, equals, word = argument.lstrip("-").partition("=")
        if flag == name:
            on = not equals or _BooleanParser.WORDS.get(word.lower(), False)
        elif flag == f"no{name}":
            on = False
    return on


def read_flagfile(path: Path) -> list[str]:
    """The arguments in a flag file, and in those it names.

    Raises:
        UserError: One cannot be read, or is none.
    """
    argument = f"--flagfile={path}"
    check_flagfiles([argument])
    return flags.FlagValues().read_flags_from_files([argument])


def check_flagfiles(arguments: Sequence[str]) -> None:
    """Refuses flag files that absl would fail on, or read without end.

    Raises:
        UserError: One is missing, no regular file, too large or no text, or they name others
            too often.
    """
    lines = [0]
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        if argument in ("--flagfile", "-flagfile"):
            _check_flagfile(following, (), lines)
        elif argument.startswith(_FLAGFILE):
            _check_flagfile(argument.partition("=")[2], (), lines)


def _check_flagfile(name: str, above: tuple[str, ...], lines: list[int]) -> None:
    """Follows one flag file into those it names; counts all lines in `lines`."""
    if not name.strip() or name in above:  # absl skips both
        return
    path = os.path.expanduser(name.strip())
    try:
        text = files.read_text(Path(path), _MOST_BYTES, "the flag file")
        if "\0" in text:
            raise ValueError("it has zero bytes")
    except ValueError as error:
        raise UserError(
            f"--flagfile '{path}' is no text in UTF-8 ({error}); give a flag file."
        ) from error
    for line in text.splitlines():
        lines[0] += 1
        if lines[0] > _MOST_LINES or len(above) > _MOST_NESTED:
            raise UserError(
                f"--flagfile '{path}': flag files name one another more than {_MOST_NESTED} levels "
                f"deep, or have more than {_MOST_LINES:,} lines; leave some out."
            )
        if line.startswith(_FLAGFILE):
            _check_flagfile(line.partition("=")[2], (*above, name), lines)


def format_help(
    doc: str | None, groups: Iterable[type], *, full: bool = False, width: int | None = None
) -> str:
    """What `--help` prints: the text of a command, then its flags under headings.

    A heading is the first line of a group's docstring.

    Args:
        doc: The text of the command; Python drops it with -OO.
        groups: Its groups and configurations, in the order in which they are shown.
        full: Show advanced flags too.
        width: Of the longest line; by default the terminal's.
    """
    width = width or max(40, shutil.get_terminal_size().columns)
    parts = [(doc or "").strip()]
    every = [field for g in groups for leaf in leaves(g) for field in dataclasses.fields(leaf)]
    hidden = 0 if full else sum(field.metadata["advanced"] for field in every)
    for leaf in (leaf for group in groups for leaf in leaves(group)):
        fields = [f for f in dataclasses.fields(leaf) if full or not f.metadata["advanced"]]
        if fields:
            heading = (leaf.__doc__ or "").partition("\n")[0].rstrip(".")
            parts.append("\n".join([f"{heading}:", *(_help_of(f, leaf, width) for f in fields)]))
    own = "--flagfile=FILE: Read further flags from a file, one a line."
    parts.append(f"Of every command:\n{_wrapped(own, width)}")
    if hidden:
        flags_are = "flag is" if hidden == 1 else "flags are"
        parts.append(f"{hidden} more {flags_are} for rare needs; --helpfull lists all.")
    return "\n\n".join(parts)


def _help_of(field: dataclasses.Field, group: type, width: int) -> str:
    meta, default = field.metadata, field.default
    switch = _without_none(typing.get_type_hints(group)[field.name]) is bool
    name = f"--[no]{field.name}" if switch else f"--{field.name}"
    if meta["alias"]:
        name += f" (or --{meta['alias']})"
    facts = []
    if meta["choices"]:
        facts.append(" | ".join(meta["choices"]))
    lower, upper = meta["lower"], meta["upper"]
    if upper is not None:
        facts.append(f"{lower} to {upper}")
    elif lower:
        facts.append(f"at least {lower}")
    if default not in (None, "", (), False):
        shown = _written("", default).lstrip("=") if default is not True else "on"
        facts.append(f"default: {shown}")
    if meta["key"]:
        facts.append(f"{DATASET}: {meta['key']}")
    ending = f" ({'; '.join(facts)})" if facts else ""
    return _wrapped(f"{name}: {meta['help']}{ending}", width)


def _wrapped(text: str, width: int) -> str:
    return textwrap.fill(
        text,
        width,
        initial_indent="  ",
        subsequent_indent="      ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _define_one(field: dataclasses.Field[Any], hint: Any, registry: flags.FlagValues) -> None:
    name, meta, help = field.name, field.metadata, field.metadata["help"]
    default: Any = field.default
    kind = _without_none(hint)
    if meta["choices"]:
        flags.DEFINE_enum(name, default, list(meta["choices"]), help, registry)
    elif kind is bool:
        flags.DEFINE_boolean(name, default, help, registry)
        registry[name].parser = _BooleanParser()
    elif kind is int:
        flags.DEFINE_integer(name, default, help, meta["lower"], meta["upper"], registry)
    elif kind is float:
        parser = _FiniteParser(meta["lower"], meta["upper"])
        flags.DEFINE(parser, name, default, help, registry, flags.ArgumentSerializer())
    elif typing.get_origin(kind) is tuple:
        serializer = flags.CsvListSerializer(",")
        flags.DEFINE(_ListParser(), name, default and list(default), help, registry, serializer)
    else:
        flags.DEFINE_string(name, default, help, registry)
    if meta["alias"]:
        flags.DEFINE_alias(meta["alias"], name, registry)


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return next(part for part in typing.get_args(hint) if part is not type(None))
    return hint
