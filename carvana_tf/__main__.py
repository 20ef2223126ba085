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
    if name == "help" or cli.asks_for_help(name):
        cli.show(_overview())
        return 0
    if name == "--reference":
        print(commands.reference())
        return 0
    if name == "--version":
        print(f"carvana-tf {carvana_tf.__version__}")
        return 0
    try:
        command = commands.find(name)
    except UserError as error:
        cli.report(str(error))
        return 1
    with cli.naming_commands():
        return cli.main(command, arguments)


def _overview() -> str:
    width = max(map(len, commands.SCRIPTS))
    docs = {name: commands.find(name).doc or "" for name in commands.SCRIPTS}
    lines = [f"  {name:<{width}}  {doc.partition(chr(10))[0]}" for name, doc in docs.items()]
    ending = "carvana-tf COMMAND --help shows a command's flags."
    return "\n".join([(__doc__ or "").strip(), "", "commands:", *lines, "", ending])


if __name__ == "__main__":
    sys.exit(main())
