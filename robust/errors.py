"""Errors that are raised where an input enters, in one line: the setting, its value and the remedy."""


class SettingError(ValueError):
    """A setting, a file or a combination of them that cannot work.

    Args:
        setting: name of the argument, e.g. ``epsilon``; a command line adds the path of its class.
        value: the given value.
        remedy: advice on a valid value, as a sentence fragment.
    """

    def __init__(self, setting: str, value: object, remedy: str) -> None:
        super().__init__(f"{setting}: got {value!r}; {remedy}")


class UnsupportedLayerError(SettingError):
    """A network holds a layer that this verifier has no bound for."""


class NonFiniteLossError(RuntimeError):
    """The training loss became NaN or infinite; the weights of the last checkpoint are untouched."""


class NonFiniteLogitsError(RuntimeError):
    """A network gives outputs that are NaN or infinite, so that no metric of it means anything."""


class ContradictionError(RuntimeError):
    """An example is certified and yet misclassified, as it is or under attack: a bound or an attack is wrong."""


class InvalidAttackError(RuntimeError):
    """An attack gave something other than images of its threat model, so that an accuracy would be that in another."""


class GradientError(RuntimeError):
    """An attack's gradient is NaN or infinite: no step that it takes means anything."""


class ZeroGradientError(GradientError):
    """An attack's gradient is cut, or zero for every example of a network that is not constant."""


def require(condition: bool, setting: str, value: object, remedy: str) -> None:
    """Raise :class:`SettingError` unless ``condition`` holds.

    >>> require(False, "epsilon", -1.0, "give a size of at least 0")
    Traceback (most recent call last):
    robust.errors.SettingError: epsilon: got -1.0; give a size of at least 0
    """
    if not condition:
        raise SettingError(setting, value, remedy)
