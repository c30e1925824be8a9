"""Short help: an example first, and for each setting a few classes instead of every subclass in torch."""

from __future__ import annotations

from typing import Any

from jsonargparse import _typehints

OURS = ("robust.networks.", "robust.attacks.", "robust.schedules.", "lightning_modules.", "datamodules.", "callbacks.")
MOST = 2  # classes that the help of a setting names
EXAMPLE = """\
example, a network that is trained and certified on the digits of scikit-learn in a minute:

  train.py fit --config configs/quickstart.yaml --model.epsilon 0.1 --trainer.default_root_dir logs/mine
  train.py test --ckpt_path logs/mine/lightning_logs/version_0/checkpoints/last.ckpt --data Digits
  train.py fit --model.help ContextualBudgets       # the settings of a method
  train.py fit --config mine.yaml --print_config    # all settings of a run

"""


def install() -> None:
    """Let the help of every parser name only a few classes for a setting."""
    _typehints.ActionTypeHint.extra_help = _known_classes  # type: ignore[method-assign]


def _known_classes(action: Any) -> str:
    """A few classes that a setting accepts: of this project, or else of other packages."""
    paths = _typehints.get_all_subclass_paths(action._typehint, closed_types=False)
    ours = [path for package in OURS for path in sorted(paths) if path.startswith(package)] or paths
    names = ", ".join(ours[:MOST])
    return (
        f", known subclasses: {names}{f' and {len(paths) - len(ours[:MOST])} more' if len(paths) > MOST else ''}"
        if names
        else ""
    )
