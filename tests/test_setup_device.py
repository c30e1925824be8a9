"""In setup, Lightning's ``module.device`` is already the GPU's, while the weights are still on the CPU."""

import pytest
import torch
from pytorch_lightning.trainer import call

from tests.every_method import METHODS, settings_of
from tests.testers import run


@pytest.fixture
def elsewhere(monkeypatch):
    """The trainer's device is another one while setup runs."""
    setup = call._call_setup_hook

    def setup_elsewhere(trainer):
        strategy, modules = type(trainer.strategy), trainer.lightning_module.modules()
        own = [(module, module._device) for module in modules if hasattr(module, "_device")]
        with monkeypatch.context() as patch:
            patch.setattr(strategy, "root_device", property(lambda _: torch.device("meta")))
            setup(trainer)
        for module, device in own:
            module._device = device

    monkeypatch.setattr(call, "_call_setup_hook", setup_elsewhere)


QUICK = ("contextual_budgets", "learn2perturb", "wasserstein_autoencoder")  # a verifier, noise, another base


@pytest.mark.thorough
@pytest.mark.parametrize(
    "method", [method if method in QUICK else pytest.param(method, marks=pytest.mark.slow) for method in METHODS]
)
def test_a_method_starts_where_its_weights_are(method, elsewhere, tmp_path):
    checkpoint, _ = run("fit", [*settings_of(method, tmp_path), "--trainer.max_epochs=1"], tmp_path / "run")
    assert checkpoint["global_step"] > 0
