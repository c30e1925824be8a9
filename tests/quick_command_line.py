"""The command line with the parser of the one subcommand that runs, where building all four takes most of the start."""

import train

_main, _subcommands = train.main, train.RobustCLI.subcommands


def main(args=None):
    """As ``train.main``; without a known subcommand in front, whole."""
    known = _subcommands()
    name = args[0] if args else None
    chosen = {name: known[name]} if name in known else known
    train.RobustCLI.subcommands = staticmethod(lambda: chosen)
    try:
        _main(args)
    finally:
        train.RobustCLI.subcommands = staticmethod(_subcommands)


def install():
    """Have ``train.main`` be this one."""
    train.main = main
