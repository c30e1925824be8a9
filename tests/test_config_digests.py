"""The resolved settings of each recipe are those that were reviewed, and build; one that changes needs a new digest."""

import json

import pytest

from tests.config_digests import COMMAND, FILE, PROTOCOLS, RECIPES, digest, stated
from tests.resolved_configs import EXPERIMENTS, QUICK, built, resolved

KEPT = json.loads(FILE.read_text())


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_settings_of_its_digest_and_is_built(name):
    assert digest(RECIPES[name]) == KEPT[name], f"{name} changed; if that is meant, run {COMMAND}"
    assert_built(name)


def assert_built(name):
    objects = built(name)
    assert sum(weight.numel() for weight in objects.model.parameters()) > 0
    assert objects.data.num_classes > 1


@pytest.mark.slow  # tests/test_evaluation_configs.py runs them
@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_has_the_settings_of_its_digest(name):
    assert digest(PROTOCOLS[name]) == KEPT[name], f"{name} changed; if that is meant, run {COMMAND}"


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name.endswith("_short.yaml") and name not in QUICK])
def test_a_short_recipe_is_built(name):
    assert_built(name)


def test_every_recipe_has_a_digest_and_none_is_left_over():
    assert KEPT.keys() == (RECIPES | PROTOCOLS).keys()


def test_a_digest_leaves_out_folders_and_defaults_of_torch_and_lightning():
    settings = stated(resolved("weighted_minimax/mnist_trades.yaml"))
    assert settings["model"]["init_args"]["optimizer"]["init_args"] == {"lr": 0.01, "momentum": 0.9}
    assert settings["trainer"].keys() == {"callbacks", "enable_model_summary", "max_epochs"}
    assert "root" not in settings["data"]["init_args"]
    assert settings["model"]["init_args"]["attack"]["init_args"]["steps"] == 40
