"""The one exception that means "the user can mend this"."""

import difflib
from collections.abc import Iterable


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
