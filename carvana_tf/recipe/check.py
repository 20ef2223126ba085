"""Whether commands will accept a recipe's command lines, before the first of them starts."""

from collections.abc import Callable, Sequence

from carvana_tf.cli import Command
from carvana_tf.errors import Problems, UserError
from carvana_tf.recipe.steps import Fitted, Step


def command_lines(steps: Sequence[Step], find: Callable[[str], Command]) -> None:
    """Parses the flags of all steps; those that an earlier step finds are left out.

    Args:
        steps: All of them.
        find: The command of a name.

    Raises:
        UserError: A command does not know a flag, or its value, or refuses what they say.
    """
    for step in steps:
        arguments = [str(flag) for flag in step.flags if not isinstance(flag, Fitted)]
        command, problems = find(step.command).chosen(arguments), Problems()
        try:
            command.check_flags(command.parse(arguments), problems)
            problems.raise_any()
        except UserError as error:
            raise UserError(
                f"the recipe's flags of {step.command} for '{step.name}': {error}"
            ) from error
