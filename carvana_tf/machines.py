"""The processes on several machines that train one network together, as TF_CONFIG names them.

Its format is TensorFlow's, which schedulers of Kubernetes set by themselves:

    {"cluster": {"worker": ["host-a:2222", "host-b:2222"]}, "task": {"type": "worker", "index": 0}}

Addresses are the same in all processes, and in the same order; each has its own `task`.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from carvana_tf.errors import Problems, UserError
from carvana_tf.failures import describe

VARIABLE = "TF_CONFIG"

_KINDS = ("chief", "worker")  # the first of all writes the results


@dataclass(frozen=True)
class Machines:
    """The processes of a training.

    Attributes:
        addresses: "host:port" of each, the one that writes the results first.
        number: Of this process, from 0.
    """

    addresses: Sequence[str]
    number: int

    def __str__(self) -> str:
        return f"process {self.number} of the {len(self.addresses)} at {', '.join(self.addresses)}"

    @property
    def others(self) -> str:
        """The addresses of all but this one."""
        return ", ".join(a for n, a in enumerate(self.addresses) if n != self.number)


def find(variables: Mapping[str, str] = os.environ) -> Machines | None:
    """The processes that `VARIABLE` names; None where there is no other one.

    Raises:
        UserError: It does not say that in the right form.
    """
    text = variables.get(VARIABLE, "").strip()
    if not text:
        return None
    try:
        config = json.loads(text)
        cluster = config.get("cluster", {})
        if others := sorted(cluster.keys() - {*_KINDS}):
            raise ValueError(f"{', '.join(others)} has no part in this, only chief and worker")
        found = {(kind, n): a for kind in _KINDS for n, a in enumerate(cluster.get(kind, ()))}
        if len(found) < 2:
            return None
        task = config["task"]
        own = (task["type"], int(task["index"]))
        if own not in found:
            raise ValueError(f"the cluster has no {own[0]} {own[1]}")
        if not all(isinstance(address, str) for address in found.values()):
            raise ValueError("an address is not a text")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{VARIABLE} does not name the machines of a training ({describe(error)}); unset it, "
            'or give {"cluster": {"worker": ["HOST:PORT", …]}, "task": {"type": "worker", '
            '"index": N}}, see docs/scale.md.'
        ) from error
    return Machines(tuple(found.values()), list(found).index(own))


def refuse(what: str, problems: Problems) -> None:
    """Adds a problem where `VARIABLE` names several machines, which `what` does not use."""
    try:
        several = find() is not None
    except UserError:
        several = True
    if several:
        problems.add(f"{VARIABLE} names several machines, and {what}; unset it.")
