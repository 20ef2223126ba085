"""Whether the scripts will understand their command lines, before the first of them starts."""

import importlib.util
import multiprocessing
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType

from absl import flags as absl_flags

from carvana_tf import __version__, flags
from carvana_tf.errors import UserError
from carvana_tf.files import digest_of_lines, read_json, write_json
from carvana_tf.recipe.steps import Fitted, Step


def command_lines(steps: Sequence[Step], scripts: Path, memory: Path | None = None) -> None:
    """Parses the flags of all steps with those the scripts define.

    A process of its own imports the scripts, and with them Keras: this one, which waits
    for days, shall not hold it.

    Args:
        steps: All of them.
        scripts: Folder of the scripts.
        memory: A file that remembers what was found right.

    Raises:
        UserError: A script would refuse its flags.
    """
    lines = {
        step.name: (
            scripts / step.script,
            [str(flag) for flag in step.flags if not isinstance(flag, Fitted)],
        )
        for step in steps
    }
    found = {"digest": digest_of_lines([__version__, *map(str, lines.items())])}
    if memory is not None and memory.is_file() and read_json(memory) == found:
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        pool.submit(refuse_unknown, lines).result()
    if memory is not None:
        write_json(memory, found)


def refuse_unknown(lines: Mapping[str, tuple[Path, Sequence[str]]]) -> None:
    """Parses command lines, given by what they are for, as (script, arguments).

    A script whose flags can contradict each other tells so in a function `check_flags`.

    Raises:
        UserError: A script does not know a flag, or its value, or refuses what they say.
    """
    scripts = {script: import_script(script) for script in {script for script, _ in lines.values()}}
    for name, (script, arguments) in lines.items():
        module, registry = scripts[script]
        told = flags.objection(registry, arguments) or _refusal(module)
        if told:
            raise UserError(f"the recipe's flags of {script.name} for '{name}': {told}")


def _refusal(module: ModuleType) -> str | None:
    try:
        getattr(module, "check_flags", lambda: None)()
    except UserError as error:
        return str(error)
    return None


def import_script(script: Path) -> tuple[ModuleType, absl_flags.FlagValues]:
    """A script as a module, and its flags in a registry of their own.

    Raises:
        UserError: There is no such script.
    """
    spec = importlib.util.spec_from_file_location(f"script_{script.stem}", script)
    if spec is None or spec.loader is None or not script.is_file():
        raise UserError(f"'{script}' is missing; run train_and_predict.py from where it belongs.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    with flags.apart() as registry:
        spec.loader.exec_module(module)
    return module, registry
