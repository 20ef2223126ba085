"""The commands: each is a module with its groups of flags, `validate` and `run`."""

import importlib
import re
from collections.abc import Iterable

from carvana_tf import flags
from carvana_tf.cli import Command
from carvana_tf.errors import unknown_name
from carvana_tf.filenames import SCRIPTS as SCRIPTS

_NO_LIMIT = 100_000  # characters of a line


def find(name: str) -> Command:
    """The command of a name.

    Raises:
        UserError: There is none.
    """
    if name not in SCRIPTS:
        raise unknown_name("the command", name, SCRIPTS)
    return importlib.import_module(f"{__name__}.{name}").COMMAND


def reference() -> str:
    """All flags of all commands as a page of Markdown, `docs/commands.md`."""
    parts = [
        "# Commands",
        "Every flag of every command, as `--helpfull` shows them. `make docs` writes this page.",
    ]
    for name, script in SCRIPTS.items():
        command = find(name)
        for task in ("", *command.variants):
            chosen = command.chosen([f"--task={task}"])
            suffix = task and f" --task={task}"
            parts += [
                f"## {name}{suffix}",
                f"`carvana-tf {name}{suffix}` or `python {script}{suffix}`",
                f"```text\n{(chosen.doc or '').strip()}\n```",
                _listed(chosen.groups),
            ]
    return "\n\n".join(parts)


def _listed(groups: Iterable[type]) -> str:
    """The flags of a command as lists of Markdown."""
    lines = []
    for line in flags.format_help(None, groups, full=True, width=_NO_LIMIT).strip().splitlines():
        name, _, text = line.strip().partition(": ")
        if line.startswith("  "):
            lines.append(f"- `{name}`: {' '.join(map(_literal, text.split()))}")
        else:
            lines.append(line and f"**{line.rstrip(':')}**\n")
    return "\n".join(lines)


def _literal(word: str) -> str:
    """A word of a help text, as code where Markdown would not leave it as it is."""
    match = re.fullmatch(r"([('\"]*)(.*?)([)'\",;.:]*)", word)
    if match is None or not (word.startswith("--") or re.search(r"[\\*_<>{}\[\]^]", word)):
        return word
    before, inner, after = match.groups()
    return f"{before}`{inner}`{after}"
