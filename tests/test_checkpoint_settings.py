"""Checkpoints carry their settings: modules are rebuilt from them, evaluations need no config."""

import sys

import pytest
import torch
from torch import nn

import train
from lightning_modules import (
    TRADES,
    AdversarialTraining,
    ContextualBudgets,
    Learn2Perturb,
    ParametricNoiseInjection,
    RobustClassifier,
    StandardTraining,
    TrainingModule,
    WeightedMinimax,
)
from robust.attacks import PGD
from robust.errors import SettingError
from robust.networks import DMSmall, Noisy, NoisyWeights
from tests.callbacks.trained import trainer_with
from tests.command_line import FEW_BATCHES, TINY
from tests.testers import QUIET, error_of, last_checkpoint, results_in

DATA = ["--data=Digits", "--data.eval_batch_size=100"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a training."""
    folder = tmp_path_factory.mktemp("trained")
    settings = ["--model.epsilon=0.07", "--trainer.max_epochs=1"]
    train.main(["fit", *TINY, *FEW_BATCHES, *settings, *QUIET, f"--trainer.default_root_dir={folder}"])
    return folder


def evaluated(command, trained, folder, *settings):
    where = [f"--ckpt_path={last_checkpoint(trained)}", *QUIET, f"--trainer.default_root_dir={folder}"]
    train.main([command, *where, *DATA, *settings])
    return results_in(folder / "results.json") if command != "predict" else None


@pytest.mark.thorough
@pytest.mark.parametrize("base", [ContextualBudgets, RobustClassifier, TrainingModule])
def test_a_checkpoint_rebuilds_module_and_networks(base, trained):
    module = base.load_from_checkpoint(last_checkpoint(trained))
    assert isinstance(module, ContextualBudgets)
    assert module.epsilon == 0.07
    saved = torch.load(last_checkpoint(trained), weights_only=True)  # plain values alone
    for name, weight in module.state_dict().items():
        assert torch.equal(weight, saved["state_dict"][name])
    assert base.load_from_checkpoint(str(last_checkpoint(trained)), epsilon=0.2).epsilon == 0.2


def test_evaluations_need_no_config_and_the_command_line_wins(trained, tmp_path):
    record = evaluated("test", trained, tmp_path / "test", "--model.alpha_low=0.25")
    model = record["config"]["model"]["init_args"]
    assert (model["epsilon"], model["alpha_low"], model["generator"] is not None) == (0.07, 0.25, True)
    assert {"model.alpha_low", "data.class_path", "ckpt_path"} <= set(record["sources"]["command line"])
    assert {"model.class_path", "model.epsilon", "model.generator.width"} <= set(record["sources"]["checkpoint"])
    assert "model.alpha_low" not in record["sources"]["checkpoint"]
    assert record["sources"]["file"] == []
    other = tmp_path / "epsilon.yaml"
    other.write_text("model: {init_args: {epsilon: 0.3}}")
    record = evaluated("validate", trained, tmp_path / "validate", f"--config={other}")
    assert record["config"]["model"]["init_args"]["epsilon"] == 0.3
    assert record["config"]["model"]["class_path"] == "lightning_modules.ContextualBudgets"
    assert record["sources"]["file"] == ["model.epsilon"]
    evaluated("predict", trained, tmp_path / "predict")
    assert (tmp_path / "predict" / "predictions.csv").exists()


def test_a_training_starts_from_its_config_and_no_checkpoint_settings(trained, tmp_path, capsys):
    arguments = ["fit", *DATA, f"--ckpt_path={last_checkpoint(trained)}", *QUIET]
    assert error_of(arguments, capsys).startswith("model: not given; put it in the config file")


def without(trained, folder, entry="model"):
    content = torch.load(last_checkpoint(trained), weights_only=True)
    del content[entry]
    torch.save(content, folder / "old.ckpt")
    return folder / "old.ckpt"


def test_a_checkpoint_without_settings_is_refused_with_the_remedy(trained, tmp_path, capsys):
    old = without(trained, tmp_path)
    line = error_of(["test", *DATA, f"--ckpt_path={old}"], capsys)
    remedy = "give the config of its training before it: --config FILE (config.yaml in the run's folder)"
    assert line == f"ckpt_path: got '{old}'; it holds no settings of its model; {remedy}"
    with pytest.raises(
        SettingError, match=r"^checkpoint_path: got '.*'; it holds no settings of its model, as of older"
    ):
        RobustClassifier.load_from_checkpoint(old)
    folder = tmp_path / "with config"
    config = ["--config", str(trained / "config.yaml"), "--ckpt_path", str(old), "--trainer.callbacks=[]"]
    train.main(["test", *config, *QUIET, f"--trainer.default_root_dir={folder}"])
    assert results_in(folder / "results.json")["config"]["model"]["init_args"]["epsilon"] == 0.07


def test_another_class_and_other_files_are_refused(trained, tmp_path):
    with pytest.raises(SettingError, match="it is of ContextualBudgets, which is not a StandardTraining"):
        StandardTraining.load_from_checkpoint(last_checkpoint(trained))
    torch.save({"state_dict": {}}, tmp_path / "weights.pth")
    with pytest.raises(SettingError, match="it is not a checkpoint of a training; give a checkpoint that fit wrote"):
        RobustClassifier.load_from_checkpoint(tmp_path / "weights.pth")
    content = torch.load(last_checkpoint(trained), weights_only=True)
    content["model"]["init_args"]["classifier"]["class_path"] = "moved.Net"
    torch.save(content, tmp_path / "moved.ckpt")
    with pytest.raises(SettingError, match=r"its module cannot be built \(.*moved.*; its classes must be importable"):
        RobustClassifier.load_from_checkpoint(tmp_path / "moved.ckpt")
    with pytest.raises(SettingError, match="classifier: got 'an object'; give class_path and init_args"):
        RobustClassifier.load_from_checkpoint(last_checkpoint(trained), classifier=DMSmall())


def test_a_module_built_in_python_keeps_its_plain_arguments_and_asks_for_its_objects(tmp_path, capsys):
    module = AdversarialTraining(DMSmall(), 0.2, attack=PGD(3))
    trainer = trainer_with(max_epochs=0)
    trainer.strategy.connect(module)
    path = tmp_path / "own.ckpt"
    trainer.save_checkpoint(path)
    for cls in (AdversarialTraining, RobustClassifier):
        again = cls.load_from_checkpoint(path, classifier=DMSmall(), attack=PGD(3))
        assert (again.epsilon, again.attack.steps) == (0.2, 3)
        assert torch.equal(next(again.parameters()), next(module.parameters()))
    remedy = r"its module was built in Python from attack, classifier; give them as in load_from_checkpoint\(path, att"
    with pytest.raises(SettingError, match=remedy):
        AdversarialTraining.load_from_checkpoint(path)
    line = error_of(["test", *DATA, f"--ckpt_path={path}"], capsys)
    assert "its model was built in Python, so its settings lack attack, classifier; give the config" in line


@pytest.mark.parametrize(
    ("method", "network"),
    [
        (TRADES, DMSmall),
        (WeightedMinimax, DMSmall),
        (Learn2Perturb, lambda: Noisy(DMSmall(), after=["1"], image_shape=(1, 28, 28))),
        (ParametricNoiseInjection, lambda: NoisyWeights(DMSmall())),
    ],
)
def test_a_default_attack_is_not_asked_for(method, network, tmp_path):
    trainer = trainer_with(max_epochs=0)
    trainer.strategy.connect(method(network()))
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    assert isinstance(method.load_from_checkpoint(tmp_path / "own.ckpt", classifier=network()).attack, PGD)


def test_weights_to_start_from_are_not_read_again(tmp_path):
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    torch.save(network.state_dict(), tmp_path / "start.pth")
    module = StandardTraining(network, weights=str(tmp_path / "start.pth"))
    trainer = trainer_with(max_epochs=0)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    (tmp_path / "start.pth").unlink()
    fresh = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    StandardTraining.load_from_checkpoint(tmp_path / "end.ckpt", classifier=fresh)
    assert torch.equal(fresh[1].weight, network[1].weight)


METHOD = "from lightning_modules import StandardTraining\n\n\nclass Mine(StandardTraining):\n    pass\n"


def test_a_method_beside_the_config_file_is_found_and_a_missing_one_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "method_of_mine.py").write_text(METHOD)
    config = tmp_path / "own" / "mine.yaml"
    config.write_text("model: {class_path: method_of_mine.Mine}\nmodel.classifier: robust.networks.DMSmall\n")
    few = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1", *QUIET]
    train.main(
        ["fit", f"--config={config}", *DATA, *few, "--model.epsilon=0.2", f"--trainer.default_root_dir={tmp_path}"]
    )
    path = last_checkpoint(tmp_path)
    sys.path.remove(str(config.parent))
    del sys.modules["method_of_mine"]
    line = error_of(["test", *DATA, f"--ckpt_path={path}"], capsys)
    remedy = "run train.py in the folder of its module, or give a config file beside the module"
    assert line.startswith(f"ckpt_path: got '{path}'; its model method_of_mine.Mine cannot be imported (No module")
    assert line.endswith(remedy)
    folder = tmp_path / "test"
    command = ["test", "--config", str(config), *DATA, *QUIET, f"--ckpt_path={path}"]
    train.main([*command, f"--trainer.default_root_dir={folder}"])
    assert results_in(folder / "results.json")["config"]["model"]["init_args"]["epsilon"] == 0.2
