"""The resolved settings of each recipe are those that were reviewed; one that changes needs a new digest."""

import json

import pytest

from tests.config_digests import COMMAND, FILE, PAPERS, PROTOCOLS, RECIPES, digest, stated
from tests.resolved_configs import resolved

KEPT = json.loads(FILE.read_text())


def _marked(name):
    return name if name.startswith(PAPERS) else pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize("name", [_marked(name) for name in RECIPES | PROTOCOLS])
def test_a_recipe_has_the_settings_of_its_digest(name):
    assert digest((RECIPES | PROTOCOLS)[name]) == KEPT[name], f"{name} changed; if that is meant, run {COMMAND}"


def test_every_recipe_has_a_digest_and_none_is_left_over():
    assert KEPT.keys() == (RECIPES | PROTOCOLS).keys()


def test_a_digest_leaves_out_folders_and_defaults_of_torch_and_lightning():
    settings = stated(resolved("weighted_minimax/mnist_trades.yaml"))
    assert settings["model"]["init_args"]["optimizer"]["init_args"] == {"lr": 0.01, "momentum": 0.9}
    assert settings["trainer"].keys() == {"callbacks", "enable_model_summary", "max_epochs"}
    assert "root" not in settings["data"]["init_args"]
    assert settings["model"]["init_args"]["attack"]["init_args"]["steps"] == 40
