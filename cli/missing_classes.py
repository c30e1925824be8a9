"""Says which part of an import path does not exist, where it was searched, and the closest name that exists."""

from __future__ import annotations

import difflib
import inspect
import pkgutil
import sys
import sysconfig
from importlib import import_module
from pathlib import Path
from types import ModuleType

from torch import optim

import callbacks
import datamodules
import lightning_modules
from robust import attacks, bounds, networks

CLASSES = {
    name: f"{package.__name__}.{name}"
    for package in (lightning_modules, datamodules, callbacks, networks, bounds, attacks)
    for name in package.__all__
}
_GIVE_PATH = "give its import path, such as package.module.Class"


def missing_class(path: str) -> str:
    """Problem and remedy of an import path, or of a class's name, to which no class belongs."""
    *parents, last = path.split(".")
    if not parents:
        near = closest(path, _torch_classes() | CLASSES)
        return f"no such class, {f'did you mean {near}?' if near else _GIVE_PATH}"
    module: ModuleType | None = None
    for index, part in enumerate(parents):
        try:
            module = import_module(".".join(parents[: index + 1]))
        except ImportError:
            return _missing_module(module, part, [*parents[index + 1 :], last])
    assert module is not None
    near = closest(last, {name: name for name, value in vars(module).items() if _can_be_given(name, value)})
    remedy = f", did you mean {module.__name__}.{near}?" if near else "; give a class or a function in it"
    return f"{_with_file(module)} has no {last!r}{remedy}"


def _missing_module(package: ModuleType | None, name: str, rest: list[str]) -> str:
    """Problem and remedy of a path whose part ``name`` is no module.

    Args:
        package: package that should have the module; None for a module of its own.
        name: name of the module.
        rest: parts of the path after the module.
    """
    if package is None:
        folders = search_folders()
        names = [module.name for module in pkgutil.iter_modules(folders)] + [n for n in sys.modules if "." not in n]
        problem, start = f"there is no module {name!r} in {', '.join(folders)} or the installed packages", ""
    else:
        names = [module.name for module in pkgutil.iter_modules(getattr(package, "__path__", []))]
        problem, start = f"{_with_file(package)} has no module {name!r}", f"{package.__name__}."
    near = closest(name, {other: other for other in names if not other.startswith("_")}, 0.75)
    remedy = f", did you mean {start}{'.'.join([near, *rest])}?" if near else f"; {_GIVE_PATH}"
    return problem + remedy


def search_folders() -> list[str]:
    """Folders in which modules are searched, without those of Python and of installed packages."""
    paths = dict.fromkeys(Path(entry).resolve() for entry in sys.path)  # without repetitions
    return [str(path) for path in paths if path.is_dir() and not _is_installed(path)]


def _is_installed(path: Path) -> bool:
    """Whether a path is Python's own or below installed packages, which may themselves be below a searched folder."""
    libraries = {Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
    return bool(libraries & {path, *path.parents})


def closest(name: str, known: dict[str, str], cutoff: float = 0.6) -> str | None:
    """The value in ``known`` whose key is closest to a name, in upper or lower case; None if none is close."""
    lower = {other.lower(): other for other in known}
    near = difflib.get_close_matches(name.lower(), lower, 1, cutoff)
    return known[lower[near[0]]] if near else None


def _torch_classes() -> dict[str, str]:
    """Import paths of torch's optimizers and schedules by their names."""
    return {
        name: f"{module.__name__}.{name}"
        for module, base in ((optim, optim.Optimizer), (optim.lr_scheduler, optim.lr_scheduler.LRScheduler))
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, base) and not name.startswith("_")
    }


def _can_be_given(name: str, value: object) -> bool:
    return not name.startswith("_") and (inspect.isclass(value) or inspect.isroutine(value))


def _with_file(module: ModuleType) -> str:
    file = getattr(module, "__file__", None)
    own = file is not None and not _is_installed(Path(file).resolve())
    return f"module {module.__name__}" + (f" ({file})" if own else "")
