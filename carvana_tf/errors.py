"""The one exception that means "the user can correct this"."""

import difflib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ParamSpec, TypeVar

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


class UserError(Exception):
    """A mistake in the input; its message is one line that names the thing and the fix.

    Scripts print it as `error: <message>` without a traceback and exit with status 1.
    """


def unknown_name(kind: str, received: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not in a table, with the nearest one suggested.

    Args:
        kind: What the name is of, as the message shall call it ("--network").
        received: The name as given.
        known: Every name that would have been right.
    """
    known = list(known)
    nearest = difflib.get_close_matches(received, known, n=1, cutoff=0.5)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    return UserError(f"{kind} '{received}' is unknown.{hint} Known: {', '.join(known)}.")


def absent(path: str | Path | None) -> str:
    """Why a file or folder is not there under its name, as the end of a sentence, with the fix."""
    name = os.fspath(path or "")
    if os.path.isdir(name):
        return "is a folder; name a file in it."
    if os.path.exists(name):
        return "is no folder; name the folder it is in."
    return "does not exist; correct its name."


class Problems:
    """Mistakes in flags and folders, gathered so that one run reports them all."""

    def __init__(self) -> None:
        self._found: dict[str, None] = {}

    def add(self, problem: str, where: bool = True) -> None:
        """Adds a problem, a sentence that names the flag and the fix, if there is one."""
        if where:
            self._found[problem] = None

    def attempt(
        self,
        function: Callable[Arguments, Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result | None:
        """What the function returns; None where it raises a UserError, which is kept."""
        try:
            return function(*args, **kwargs)
        except UserError as error:
            self.add(str(error))
            return None

    def raise_any(self) -> None:
        """Ends with all that was found.

        Raises:
            UserError: Something was.
        """
        if len(self._found) == 1:
            raise UserError(*self._found)
        if self._found:
            listed = " ".join(f"({i}) {problem}" for i, problem in enumerate(self._found, start=1))
            raise UserError(f"{len(self._found)} mistakes: {listed}")
