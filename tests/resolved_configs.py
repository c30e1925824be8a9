"""What config files say when composed, as ``--print_config`` shows it, from one parser for all of them."""

import functools

import torch
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

# Beside the configs of the digits, the default run trains one of each class of behaviour: each network, kind of data
# and callback. The others differ from them in sizes and schedules.
QUICK = [
    "quickstart.yaml",
    "contextual_budgets/cifar10_resnet.yaml",  # batch normalisation
    "contextual_budgets/doubled_cifar10_short.yaml",  # regions of budgets
    "contextual_budgets/mnist.yaml",
    "contextual_budgets/mnist_epsilon_0.8.yaml",  # a range that moves
    "contextual_budgets/mnist_uniform.yaml",  # DM-large, no generator
    "contextual_budgets/watermarked_mnist.yaml",
    "learn2perturb/cifar10_short.yaml",  # noise inside ResNet-18
    "mng_ac/svhn_semi_supervised.yaml",
    "robustness_score/none_digits.yaml",  # the baseline of the scores
    "trades/cifar10.yaml",
    "wasserstein_autoencoder/cifar10.yaml",
    "weighted_minimax/cifar10_pgd.yaml",  # a wide residual network
    "weighted_minimax/mnist_trades_short.yaml",
]
QUICK += [name for name in EXPERIMENTS if name.endswith("/digits.yaml")]


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


def parsed(*paths, arguments=()):
    """Settings of config files, one behind the other, as the parser of ``fit`` holds them.

    Args:
        paths: of the files, relative to ``configs/`` or absolute.
        arguments: of the command line, behind the files.
    """
    parser, _ = parsers()
    return parser.parse_args(["fit", *(f"--config={CONFIGS / path}" for path in paths), *arguments]).fit


def plain(config):
    """Parsed settings as ``train.py fit --print_config`` shows them."""
    _, fit = parsers()
    return yaml.safe_load(fit.dump(config, skip_unset=False))


def resolved(*paths, arguments=()):
    """Settings of config files, as in :func:`parsed`, as :func:`plain` shows them."""
    return plain(parsed(*paths, arguments=arguments))


def built(config):
    """Model, data and callbacks of parsed settings, without memory for weights."""
    _, fit = parsers()
    with torch.device("meta"):
        return fit.instantiate_classes(config)
