"""How every command starts and ends: flags parsed once, mistakes reported in one line."""

from carvana_tf.starting import INTERRUPTED, loaded

import contextlib
import dataclasses
import errno
import importlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags as absl_flags
from absl import logging

from carvana_tf import environment, flags
from carvana_tf.data.names import printable
from carvana_tf.errors import Problems, UserError
from carvana_tf.failures import OutOfMemory, describe, is_out_of_memory
from carvana_tf.filenames import DATASET, SCRIPTS
from carvana_tf.files import FULL_DISK
from carvana_tf.interrupt import repeat_lost_ones
from carvana_tf.memory import keep_freed_memory

_FAULTS = (errno.EBADF, errno.EFAULT)
"""Errors of the system that a fault of this program causes."""
_MORE_MEMORY = (
    "close other programs, lower --threads, or use a machine with more memory, and run the "
    "command again."
)
_names_commands = False
_HELP = re.compile("--?(help|helpshort|helpfull|h|[?])")


def _accept(values: flags.Values, problems: Problems) -> None:
    pass


def _here(values: flags.Values) -> int | None:
    return None


@dataclasses.dataclass(frozen=True)
class Command:
    """A command: its flags and what it does with them.

    Attributes:
        doc: What `--help` shows above the flags; the first line says what the command does.
        groups: Dataclasses made of `flags.option` fields.
        run: Does the work; returns the exit status, None for 0.
        validate: Adds every mistake in flags and folders that shows without Keras.
        check_flags: Adds the mistakes that show without any file, for command lines whose
            inputs do not exist yet, as those of a recipe.
        elsewhere: Does the work on other machines where flags ask for that, without `loads`;
            returns the exit status, None where they do not.
        loads: Modules that `run` imports and that need Keras. They are loaded after
            `validate`, while Ctrl-C still ends the process in one line, and after `devices`,
            which starts the backend without its messages.
        variants: By `--task`, the modules whose `COMMAND` takes this one's place.
    """

    doc: str | None
    groups: tuple[type, ...]
    run: Callable[[flags.Values], int | None]
    validate: Callable[[flags.Values, Problems], None] = _accept
    check_flags: Callable[[flags.Values, Problems], None] = _accept
    elsewhere: Callable[[flags.Values], int | None] = _here
    loads: tuple[str, ...] = ()
    variants: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def chosen(self, arguments: Sequence[str]) -> "Command":
        """This command, or its variant for the --task that a command line names.

        Raises:
            UserError: A flag file cannot be read.
        """
        module = self.variants.get(flags.find(arguments, "task") if self.variants else "")
        return importlib.import_module(module).COMMAND if module else self

    def parse(self, arguments: Sequence[str]) -> flags.Values:
        """The values of a command line.

        Raises:
            UserError: A flag is unknown, has no such value, or has no effect with the others; or
                the dataset's description is damaged.
        """
        return flags.parse(
            self.groups, arguments, absl_flags.FLAGS["verbosity"], describe=_describe
        )

    def call(self, arguments: Sequence[str]) -> int:
        """Validates a command line and runs it in this process; returns the exit status.

        Raises:
            UserError: Flags or folders are not in order, or the work cannot be done.
        """
        values = self.parse(arguments)
        _note_origin(values)
        if "max_pixels" in values:
            from carvana_tf.data.decoding import limit_pixels  # OpenCV, after `_prepare`

            limit_pixels(values.flag("max_pixels"))
        with _naming_origin(values):
            problems = Problems()
            self.validate(values, problems)
            problems.raise_any()
            if (status := self.elsewhere(values)) is not None:
                return status
            if self.loads and (note := environment.address_limit()):
                print(f"note: {note}", file=sys.stderr)
            for module in ("carvana_tf.devices", *self.loads) if self.loads else ():
                importlib.import_module(module)
            loaded()
            return self.run(values) or 0


def _describe(folder: Path) -> dict[str, Any]:
    """What is remembered of the dataset in a folder."""
    from carvana_tf.data import description  # OpenCV, after `_prepare`

    return description.read(folder)


def _note_origin(values: flags.Values) -> None:
    """Says which values no command line has, unless they are the defaults."""
    changed = [f"--{n}={v}" for n, v in values.remembered.items() if not values.is_default(n)]
    if changed:
        path = Path(values.flag("dataset_dir")) / DATASET
        print(
            f"note: from '{printable(str(path))}': {printable(' '.join(changed))}", file=sys.stderr
        )


@contextlib.contextmanager
def _naming_origin(values: flags.Values) -> Iterator[None]:
    """Inside, errors that name a flag say where its value is from, if from no command line."""
    try:
        yield
    except UserError as error:
        text = str(error)
        found = [name for name in values.remembered if re.search(rf"--{name}\b", text)]
        if found:
            path = Path(values.flag("dataset_dir")) / DATASET
            error.args = (f"{text} ('{path}' sets {', '.join(f'--{name}' for name in found)}.)",)
        raise


def main(command: Command, arguments: Sequence[str] | None = None) -> int:
    """Parses a command line and runs the command.

    `--help`, `--flagfile` and `--verbosity` are as absl has them; with `--verbosity=1` errors have
    a traceback.

    Args:
        command: What to run.
        arguments: Without the program's name; by default this process's.

    Returns:
        The exit status: what `run` returned (None is 0), 1 for a `UserError`, a bad flag or an
        error of the system, as a full disk, 130 after Ctrl-C, and after SIGTERM where work is
        then ended in order.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        command = command.chosen(arguments)
    except UserError as error:
        report(str(error))
        return 1
    if asked := [argument for argument in arguments if asks_for_help(argument)]:
        full = any(argument.endswith("helpfull") for argument in asked)
        show(flags.format_help(command.doc, command.groups, full=full))
        return 0
    for note in _NOTES:
        print(f"note: {printable(note)}", file=sys.stderr)
    keep_freed_memory()
    repeat_lost_ones()
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    absl_flags.FLAGS.mark_as_parsed()
    try:
        return command.call(arguments)
    except KeyboardInterrupt:
        report("interrupted; what was finished is kept.")
        return INTERRUPTED
    except Exception as error:
        if not _reported(error):
            raise
        return 1


def _reported(error: Exception) -> bool:
    """Reports an error in one line, unless it is a fault of this program."""
    if isinstance(error, UserError):
        message = str(error)
        if isinstance(error, OutOfMemory):
            message = f"{message}; {_MORE_MEMORY}"
    elif isinstance(error, BrokenPipeError):
        message = (
            "nothing reads what is printed any more, as after `| head`; write it into a file, or "
            "read all of it, and run the command again."
        )
    elif isinstance(error, OSError) and error.strerror and error.errno not in _FAULTS:
        where = f" for '{error.filename}'" if error.filename else ""
        fix = "make room" if error.errno in FULL_DISK else "correct that"
        message = f"{error.strerror}{where}; {fix} and run the command again."
    elif is_out_of_memory(error):
        message = f"out of memory ({describe(error)}); {_MORE_MEMORY}"
    else:
        return False
    if logging.level_debug():
        traceback.print_exception(error)
    report(message)
    return True


def asks_for_help(argument: str) -> bool:
    """Whether an argument is `--help` or one of its other names."""
    return _HELP.fullmatch(argument) is not None


def show(text: str) -> None:
    """Prints a text whose reader may stop early, as `head` does."""
    try:
        print(_as_called(text), flush=True)
    except BrokenPipeError:
        # Python would complain once more when it closes its output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def report(message: str) -> None:
    """Prints an error in one line."""
    line = re.sub(r"\s*[\r\n]\s*", " ", _as_called(message.strip()))
    print(f"error: {printable(line)}", file=sys.stderr)


@contextlib.contextmanager
def naming_commands() -> Iterator[None]:
    """Inside, messages and help name commands (`carvana-tf train`) instead of scripts."""
    global _names_commands
    _names_commands = True
    try:
        yield
    finally:
        _names_commands = False


def _as_called(text: str) -> str:
    """A text that names scripts, for whoever called a command."""
    if not _names_commands:
        return text
    names = {Path(script).name: name for name, script in SCRIPTS.items()}
    script = "|".join(map(re.escape, names))
    pattern = rf"(?<![\w/.'-])(?:python )?(?:tools/)?({script})(?!\w)"
    return re.sub(pattern, lambda found: f"carvana-tf {names[found[1]]}", text)


def _prepare() -> list[str]:
    try:
        return environment.prepare()
    except UserError as error:
        report(str(error))
        sys.exit(1)


# Now, because commands import this module first: what is loaded after it reads the environment.
_NOTES = _prepare()
