"""The resolved settings of each recipe are those that were reviewed, and build; one that changes needs a new digest."""

import json
from pkgutil import resolve_name

import pytest

from cli.composition import composed
from cli.errors import types_of_settings
from cli.missing_classes import CLASSES
from tests.config_digests import COMMAND, FILE, OURS, PAPERS, PROTOCOLS, RECIPES, digest, digest_of, stated
from tests.resolved_configs import CONFIGS, EXPERIMENTS, built, parsed, plain, resolved

KEPT = json.loads(FILE.read_text())


def _marked(name):
    return name if name.startswith(PAPERS) else pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.thorough
@pytest.mark.parametrize("name", [_marked(name) for name in RECIPES])
def test_a_recipe_has_the_settings_of_its_digest_and_is_built(name):
    config = parsed(*RECIPES[name])
    assert digest_of(plain(config)) == KEPT[name], f"{name} changed; if that is meant, run {COMMAND}"
    objects = built(config)
    assert sum(weight.numel() for weight in objects.model.parameters()) > 0
    assert objects.data.num_classes > 1


@pytest.mark.slow  # tests/test_evaluation_configs.py runs them
@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_has_the_settings_of_its_digest(name):
    assert digest(PROTOCOLS[name]) == KEPT[name], f"{name} changed; if that is meant, run {COMMAND}"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_names_settings_that_exist(name):
    """Without the parser, which takes half a second for each."""
    settings = composed({"config": name}, CONFIGS)
    assert_known({key: settings[key] for key in ("model", "data", "trainer")}, name)


def assert_known(value, where):
    """Each class of ours has the settings that it is given, at any depth."""
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        assert_known(part, f"{where}: {key}")
    if isinstance(value, dict) and "class_path" in value:
        path = CLASSES.get(value["class_path"], value["class_path"])
        resolve_name(path)
        if path.startswith(OURS):
            assert value.get("init_args", {}).keys() <= types_of_settings(path).keys(), where


def test_a_setting_that_does_not_exist_is_found():
    settings = composed({"config": "trades/mnist.yaml"}, CONFIGS)
    settings["model"]["init_args"]["attack"]["init_args"]["stepz"] = 3
    with pytest.raises(AssertionError, match=r"trades: model: init_args: attack"):
        assert_known({"model": settings["model"]}, "trades")


def test_every_recipe_has_a_digest_and_none_is_left_over():
    assert KEPT.keys() == (RECIPES | PROTOCOLS).keys()


def test_a_digest_leaves_out_folders_and_defaults_of_torch_and_lightning():
    settings = stated(resolved("weighted_minimax/mnist_trades.yaml"))
    assert settings["model"]["init_args"]["optimizer"]["init_args"] == {"lr": 0.01, "momentum": 0.9}
    assert settings["trainer"].keys() == {"callbacks", "enable_model_summary", "max_epochs"}
    assert "root" not in settings["data"]["init_args"]
    assert settings["model"]["init_args"]["attack"]["init_args"]["steps"] == 40
