"""What config files say when composed, as ``--print_config`` shows it, from one parser for all of them."""

import functools

import yaml

import train
from tests.testers import ROOT

CONFIGS = ROOT / "configs"
# folders of files that are no experiment by themselves
PIECES = ("common", "data", "evaluation", "networks", "parts", "sweeps")
EXPERIMENTS = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.rglob("*.yaml")
    if path.parent.name not in PIECES and path.stem != "sweep"
)


class _BuiltError(Exception):
    """Carries the parser out of the command line before it parses."""


class _Parser(train.RobustCLI):
    @staticmethod
    def subcommands():
        return {"fit": train.RobustCLI.subcommands()["fit"]}

    def parse_arguments(self, parser, args):
        raise _BuiltError(parser, self._parser("fit"))


@functools.cache
def parsers():
    """The parser of the command line with ``fit`` alone, and that of ``fit``."""
    try:
        _Parser(["fit"])
    except _BuiltError as built:
        return built.args


def resolved(*paths, arguments=()):
    """Settings of config files, one behind the other, as ``train.py fit --print_config`` shows them.

    Args:
        paths: of the files, relative to ``configs/`` or absolute.
        arguments: of the command line, behind the files.
    """
    parser, fit = parsers()
    config = parser.parse_args(["fit", *(f"--config={CONFIGS / path}" for path in paths), *arguments])
    return yaml.safe_load(fit.dump(config.fit, skip_unset=False))
