"""The settings behind errors of Lightning and torch that do not name them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from textwrap import shorten

from robust.errors import SettingError

Match = re.Match[str]


def lightnings_choice(message: str) -> SettingError | None:
    """The error for a strategy or an accelerator that Lightning does not have."""
    match = re.match(
        r"You selected an invalid (\w+) name: `\w+='(.*?)'`\.? (?:.*?(?:choices|names)[^:]*: )?(.*)", message
    )
    return match and SettingError(f"trainer.{match[1]}", match[2], f"give one of {shorten(match[3], 120)}")


def _validation_interval(match: Match) -> SettingError:
    remedy = f"an epoch has {match[2]} batches; give at most that, or trainer.check_val_every_n_epoch null"
    return SettingError("trainer.val_check_interval", int(match[1]), remedy)


def _memory(match: Match) -> SettingError:
    needs = f"settings that need {int(match[1]):,} bytes" if match[1] else "settings that fill the GPU"
    return SettingError("memory", needs, "this machine has less; use a smaller network, padding or batch")


def _several(match: Match) -> SettingError:
    own = {"EpsilonScheduler": "epsilon_schedule", "Checkpoint": "checkpoint"}.get(match[1])
    remedy = f"leave it out of trainer.callbacks and set {own}" if own else "give one"
    return SettingError("trainer.callbacks", f"several {match[1]}", remedy)


def _stopping(match: Match) -> SettingError:
    remedy = f"nothing logs it in this training; give one of {match[2]}"
    return SettingError("trainer.callbacks.EarlyStopping.monitor", match[1], remedy)


def _monitor(match: Match) -> SettingError:
    logged = re.findall(r"'([^']+)'", match[2])
    near = difflib.get_close_matches(match[1], logged, 1)
    remedy = f"did you mean {near[0]}?" if near else f"give one of {', '.join(logged)}"
    return SettingError("checkpoint.monitor", match[1], f"nothing logs it in this training; {remedy}")


def _accumulation(match: Match) -> SettingError:
    remedy = "the methods step their optimizers themselves; leave it out and set data.batch_size to that of a step"
    return SettingError("trainer.callbacks", "GradientAccumulationScheduler", remedy)


def _rate_finder(match: Match) -> SettingError:
    remedy = "the methods have rates of several optimizers; leave it out and compare values of model.optimizer.lr"
    return SettingError("trainer.callbacks", "LearningRateFinder", remedy)


def _package(match: Match) -> SettingError:
    return SettingError("package", match[1], f"a setting needs it; install it: pip install '{match[1]}'")


def _unused(match: Match) -> SettingError:
    remedy = "a step does not use all weights of the network; give ddp_find_unused_parameters_true"
    return SettingError("trainer.strategy", "ddp", remedy)


def _connection(match: Match) -> SettingError:
    return SettingError("processes", "a lost connection", "another process has ended; its error is above")


_KNOWN: list[tuple[str, Callable[[Match], SettingError]]] = [
    (r"`val_check_interval` \((\d+)\) must be less than or equal to .* batches \((\d+)\)", _validation_interval),
    (r"can't allocate memory: you tried to allocate (\d+) bytes|CUDA out of memory", _memory),
    (r"more than one stateful callback of type `(\w+)`", _several),
    (r"Early stopping conditioned on metric `(\S+)` which is not available.*following: (.*)", _stopping),
    (r"`ModelCheckpoint\(monitor='(.+?)'\)` could not find the monitored key .*?: \[(.*?)\]", _monitor),
    (r"the `GradientAccumulationScheduler` is not supported", _accumulation),
    (r"When using the learning rate finder", _rate_finder),
    (r"Requirement '(\S+)' not met", _package),
    (r"gloo.*(?:Connection closed by peer|Connection reset by peer)", _connection),
    (r"parameters that were not used in producing (?:the )?loss", _unused),
    (r"cannot log CPU stats as `(\S+)` is not installed", _package),
]


def known_error(error: BaseException) -> SettingError | None:
    """The setting behind an error of Lightning or torch that does not name it; None for any other error."""
    matches = ((re.search(pattern, str(error)), named) for pattern, named in _KNOWN)
    return next((named(match) for match, named in matches if match), None)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its chain of causes."""
    while error is not None:
        yield error
        error = error.__cause__
