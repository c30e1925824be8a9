"""Sets the number of classes and the image shape of networks from the data, unless their settings give them."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import isclass
from pkgutil import resolve_name
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from pytorch_lightning.utilities import rank_zero_info

from datamodules import ImageDataModule

_NAMES = ("num_classes", "image_shape")


def build_data(parser: ArgumentParser, settings: Namespace) -> ImageDataModule:
    """Build the data module from its settings, before the model is built."""
    data: ImageDataModule = parser.instantiate_classes(Namespace(data=settings)).data  # type: ignore[no-untyped-call]
    return data


def sizes_from_data(model: dict[str, Any], data: ImageDataModule, given: set[str]) -> dict[str, Any]:
    """Set the settings ``num_classes`` and ``image_shape`` of networks that nobody gave to those of the data.

    A setting that was given, or that differs from its default, does not change; if it does not fit the data, the
    module's check reports it.

    Args:
        model: settings of the model as plain dicts and lists; changed in place.
        data: data module.
        given: full names, without ``init_args``, of the settings that the command line, a file or a checkpoint gives.

    Returns:
        The new values by the settings' keys, such as ``init_args.classifier.init_args.num_classes``.
    """
    values = {name: getattr(data, name) for name in _NAMES if hasattr(data, name)}
    changed: dict[str, Any] = {}
    for key, kind, settings in _classes(model, ""):
        names = [name for name in values if name in settings and not _equal(settings[name], values[name])]
        defaults = _defaults(kind) if names else {}
        for name in names:
            setting = f"model.{key}{name}".replace("init_args.", "")
            if setting not in given and name in defaults and _equal(settings[name], defaults[name]):
                rank_zero_info(f"{setting}: {values[name]}, from the data (default {settings[name]})")
                settings[name] = list(values[name]) if name == "image_shape" else values[name]
                changed[f"{key}{name}"] = values[name]
    return changed


def _classes(config: Any, key: str) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Key of the settings, class and settings of every mapping with a ``class_path``, outside lists."""
    if isinstance(config, dict):
        settings = config.get("init_args") or {} if "class_path" in config else config
        prefix = f"{key}init_args." if "class_path" in config else key
        if "class_path" in config:
            yield prefix, resolve_name(config["class_path"]), settings
        for name, value in settings.items():
            yield from _classes(value, f"{prefix}{name}.")


def _defaults(kind: Any) -> dict[str, Any]:
    """Defaults of a class or a function, including those of the functions to which it passes its arguments."""
    parser = ArgumentParser()
    add = parser.add_class_arguments if isclass(kind) else parser.add_function_arguments
    add(kind, "defaults", fail_untyped=False)
    return dict(vars(parser.get_defaults().get("defaults", {})))


def _equal(one: Any, other: Any) -> bool:
    return (list(one) if isinstance(one, list | tuple) else one) == (list(other) if isinstance(other, tuple) else other)
