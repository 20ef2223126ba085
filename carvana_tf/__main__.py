"""Binary segmentation with Keras: photos plus some masks in, masks for all the rest out.

carvana-tf COMMAND [--flag=value ...]
"""

import carvana_tf.starting

import sys

from carvana_tf import cli, commands
from carvana_tf.errors import UserError


def main() -> int:
    """Runs the command that is named first; returns the exit status."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h", "help"):
        cli.show(_overview())
        return 0
    if name == "--reference":
        cli.show(commands.reference())
        return 0
    if name == "--version":
        print(f"carvana-tf {carvana_tf.__version__}")
        return 0
    try:
        command = commands.find(name)
    except UserError as error:
        cli.report(str(error))
        return 1
    return cli.main(command, arguments)


def _overview() -> str:
    width = max(map(len, commands.SCRIPTS))
    lines = [
        f"  {name:<{width}}  {commands.find(name).doc.splitlines()[0]}" for name in commands.SCRIPTS
    ]
    ending = "carvana-tf COMMAND --help shows a command's flags."
    return "\n".join([__doc__.strip(), "", "commands:", *lines, "", ending])


if __name__ == "__main__":
    sys.exit(main())
