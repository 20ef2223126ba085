"""The commands: each is a module with its groups of flags, `validate` and `run`."""

import importlib

from carvana_tf import flags
from carvana_tf.cli import Command
from carvana_tf.errors import unknown_name

SCRIPTS = {
    "make_demo_dataset": "tools/make_demo_dataset.py",
    "import_masks": "tools/import_masks.py",
    "check_data": "tools/check_data.py",
    "prepare_dataset": "tools/prepare_dataset.py",
    "make_folds": "make_folds.py",
    "show_augmentation": "tools/show_augmentation.py",
    "train": "train.py",
    "plot_curves": "tools/plot_curves.py",
    "inspect_model": "tools/inspect_model.py",
    "export_model": "tools/export_model.py",
    "predict": "predict_multithreaded.py",
    "evaluate": "evaluate.py",
    "ensemble": "ensemble.py",
    "export_masks": "tools/export_masks.py",
    "cut_out": "tools/cut_out.py",
    "find_bounding_boxes": "tools/find_bounding_boxes.py",
    "encode": "generate_encoded_submission.py",
    "decode_submission": "tools/decode_submission.py",
    "score_submission": "tools/score_submission.py",
    "pipeline": "train_and_predict.py",
}
"""The script of a checkout that runs each command, by the command's name, in order of use."""


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
