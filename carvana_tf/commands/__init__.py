"""The commands: each is a module with its groups of flags, `validate` and `run`."""

import importlib

from carvana_tf import flags
from carvana_tf.cli import Command
from carvana_tf.errors import unknown_name
from carvana_tf.filenames import SCRIPTS as SCRIPTS


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
            text = flags.format_help(chosen.doc, chosen.groups, full=True, width=96)
            parts += [
                f"## {name}{suffix}",
                f"`carvana-tf {name}{suffix}` or `python {script}{suffix}`",
                f"```text\n{text}\n```",
            ]
    return "\n\n".join(parts)
