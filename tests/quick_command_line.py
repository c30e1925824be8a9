"""The command line with the parser of one subcommand, since building all four takes most of the start."""

import train

_main, _subcommands = train.main, train.RobustCLI.subcommands


def main(args=None):
    """Run ``train.main``, with all parsers if the first argument is no subcommand."""
    known = _subcommands()
    name = args[0] if args else None
    chosen = {name: known[name]} if name in known else known
    train.RobustCLI.subcommands = staticmethod(lambda: chosen)
    try:
        _main(args)
    finally:
        train.RobustCLI.subcommands = staticmethod(_subcommands)


def install():
    """Replace ``train.main``."""
    train.main = main
