"""One digest for the settings of each recipe; ``python -m tests.config_digests`` writes them to config_digests.json.

A digest changes with any number of a recipe and with any default of ours. It does not change with the machine, with
folders, or with settings of torch and Lightning that keep their defaults, which differ from version to version.
"""

import hashlib
import inspect
import json
from pathlib import Path
from pkgutil import resolve_name

import yaml

from tests.resolved_configs import CONFIGS, EXPERIMENTS, parsers, resolved

FILE = Path(__file__).with_suffix(".json")
COMMAND = "python -m tests.config_digests"
PAPERS = ("contextual_budgets", "learn2perturb", "mng_ac", "robustness_score", "weighted_minimax")
OURS = ("robust.", "lightning_modules.", "datamodules.", "callbacks.")
FOLDERS = ("root", "default_root_dir")
RECIPES = {
    name: [name]
    for name in EXPERIMENTS
    if "/" in name and not name.endswith(("/digits.yaml", "_digits.yaml", "_short.yaml"))
}
PROTOCOLS = {
    str(path.relative_to(CONFIGS)): ["quickstart.yaml", str(path.relative_to(CONFIGS))]
    for path in sorted((CONFIGS / "evaluation").glob("*.yaml"))
}


def digest(files):
    """SHA-256 of the settings of config files, one behind the other."""
    return digest_of(resolved(*files))


def digest_of(settings):
    """SHA-256 of settings."""
    return hashlib.sha256(json.dumps(stated(settings), sort_keys=True).encode()).hexdigest()


def stated(settings):
    """Settings without folders and without what torch and Lightning set by default."""
    defaults = _defaults()
    for part in ("trainer", "checkpoint"):
        settings[part] = {key: value for key, value in settings[part].items() if value != defaults[part].get(key)}
    return _without_defaults(settings)


def _defaults():
    _, fit = parsers()
    return yaml.safe_load(fit.dump(fit.get_defaults(), skip_validation=True, skip_unset=False))


def _without_defaults(value):
    if isinstance(value, list):
        return [_without_defaults(part) for part in value]
    if not isinstance(value, dict):
        return value
    if "class_path" in value and not value["class_path"].startswith(OURS):
        parameters = inspect.signature(resolve_name(value["class_path"])).parameters
        given = value.get("init_args", {})
        kept = {name: part for name, part in given.items() if part != _as_yaml(parameters[name].default)}
        value = {"class_path": value["class_path"], "init_args": kept}
    return {name: _without_defaults(part) for name, part in value.items() if name not in FOLDERS}


def _as_yaml(value):
    return list(value) if isinstance(value, tuple) else value


if __name__ == "__main__":
    digests = {name: digest(files) for name, files in (RECIPES | PROTOCOLS).items()}
    FILE.write_text(json.dumps(digests, indent=0, sort_keys=True) + "\n")
