"""Wrong input to the command line: it ends in one line with the remedy."""

from pathlib import Path

import pytest
import torch
from torch import nn

from cli.class_settings import with_path
from lightning_modules import ContextualBudgets
from robust.errors import SettingError
from tests.command_line import CONFIGS, FEW_BATCHES, QUICKSTART, TINY, run
from tests.small_run import SMALL
from tests.testers import QUIET, ROOT, error_of, last_checkpoint

NETWORKS = ROOT / "robust" / "networks" / "__init__.py"
STEP = "torch.optim.lr_scheduler.MultiStepLR"
PIECEWISE = "{class_path: robust.schedules.PiecewiseLinear, init_args: {epochs: [2, 1], factors: [0, 1]}}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The log folder of a training."""
    return run("fit", tmp_path_factory.mktemp("trained"), *FEW_BATCHES)


# -- settings that cannot be read ------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        # unknown names, at each level
        ("modl=x", "modl: got 'x'; no such setting, did you mean model?"),
        ("trainer.max_epch=3", "trainer.max_epch: got '3'; no such setting, did you mean trainer.max_epochs?"),
        ("model.epsilonn=0.2", "model.epsilonn: got '0.2'; no such setting, did you mean model.epsilon?"),
        ("model.init_args.epsilonn=0.2", "model.epsilonn: got '0.2'; no such setting, did you mean model.epsilon?"),
        (
            "model.classifier.num_classs=3",
            "model.classifier.num_classs: got '3'; no such setting, did you mean model.classifier.num_classes?",
        ),
        ("model.optimizer.lrr=3", "model.optimizer.lrr: got '3'; no such setting, did you mean model.optimizer.lr?"),
        ("model.foo.bar=3", "model.foo.bar: got '3'; no such setting, see classifier, "),
        ("data.batchsize=3", "data.batchsize: got '3'; no such setting, did you mean data.batch_size?"),
        (
            "epsilon_schedule.lenght=3",
            "epsilon_schedule.lenght: got '3'; no such setting, did you mean epsilon_schedule.length?",
        ),
        ("checkpoint.monitr=x", "checkpoint.monitr: got 'x'; no such setting, did you mean checkpoint.monitor?"),
        ("foo=3", "foo: got '3'; no such setting, see train.py fit --help"),
        ("trainer.epochs=2", "trainer.epochs: got '2'; no such setting, did you mean trainer.max_epochs?"),
        ("model.batch_size=2", "model.batch_size: got '2'; no such setting, give it as data.batch_size"),
        ("data.epsilon=0.2", "data.epsilon: got '0.2'; no such setting, give it as model.epsilon"),
        ("epsilon=0.2", "epsilon: got '0.2'; no such setting, did you mean model.epsilon?"),
        # entries of a list before its last
        (
            "trainer.callbacks.CertifiedEvaluation.every_n_epochs=8",
            "trainer.callbacks.CertifiedEvaluation.every_n_epochs: got '8'; no such setting, "
            "names reach the last entry of a list only; give the list in a config file",
        ),
        (
            "trainer.callbacks.0.every_n_epochs=8",
            "trainer.callbacks.0.every_n_epochs: got '8'; no such setting, names reach the last entry of a list only",
        ),
        # abbreviations, which argparse would take
        ("trainer.max_epoch=3", "trainer.max_epoch: got '3'; no such setting, did you mean trainer.max_epochs?"),
        ("model.alpha_hig=3", "model.alpha_hig: got '3'; no such setting, did you mean model.alpha_high?"),
        # values of another kind
        ("model.epsilon=high", "model.epsilon: got 'high'; give a number"),
        ("model.classifier.num_classes=x", "model.classifier.num_classes: got 'x'; give a whole number"),
        (
            "model.classifier.image_shape=[1,2]",
            "model.classifier.image_shape: got '[1, 2]'; give [channels, height, width]",
        ),
        ("model.optimizer.lr=fast", "model.optimizer.lr: got 'fast'; give a number"),
        ("data.batch_size=x", "data.batch_size: got 'x'; give a whole number"),
        ("trainer.max_epochs=x", "trainer.max_epochs: got 'x'; give a whole number or null"),
        (
            "epsilon_schedule.shape=square",
            "epsilon_schedule.shape: got 'square'; give one of ['constant', 'linear', 'smoothed']",
        ),
        ("test_after_fit=perhaps", "test_after_fit: got 'perhaps'; give true or false"),
        # classes
        ("model=ContextualBudget", "model: got 'ContextualBudget'; no such class, did you mean lightning_modules.Con"),
        ("data=Nothing", "data: got 'Nothing'; no such class, give its import path, such as package.module.Class"),
        (
            "model.classifier=robust.networks.DMsmall",
            f"model.classifier: got 'robust.networks.DMsmall'; module robust.networks ({NETWORKS}) has no 'DMsmall', "
            "did you mean robust.networks.DMSmall?",
        ),
        ("model.classifier=nowhere.Zz", "model.classifier: got 'nowhere.Zz'; there is no module 'nowhere' in "),
        (
            "model.optimizer=torch.optim.Nope",
            "model.optimizer: got 'torch.optim.Nope'; module torch.optim has no 'Nope'; g",
        ),
        ("trainer.callbacks=Nope", "trainer.callbacks: got 'Nope'; no such class, give its import path"),
        ("model=RobustClassifier", "model: got 'RobustClassifier'; it is abstract; give a class that derives from it"),
        (
            "model.verifier=FeedForwardVerifier",
            "model.verifier: got 'FeedForwardVerifier'; no such class, did you mean r",
        ),
        ("model.classifier=torch.optim.Adam", "model.classifier: got 'torch.optim.Adam'; it is not a Module; give one"),
    ],
)
def test_wrong_setting_on_the_command_line(setting, expected, capsys):
    assert error_of(["fit", *QUICKSTART, f"--{setting}"], capsys).startswith(expected)
    name, value = setting.split("=")
    assert error_of(["fit", *QUICKSTART, f"--{name}", value], capsys).startswith(expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], 'expected "subcommand" to be one of {fit,validate,test,predict,export}'),
        (["train"], "argument subcommand: invalid choice: 'train' (choose from"),
        (["fit"], "data, model: not given; put it in the config file or add --data"),
        (["fit", "--data=Digits"], "model: not given; put it in the config file or add --model"),
        (
            ["fit", "--data=Digits", "--model=ContextualBudgets"],
            "model.classifier: not given; put it in the config file or add --model.classifier",
        ),
        (["fit", "--config=nowhere.yaml"], "config: got '{here}/nowhere.yaml'; no such file, give the path of a YAML"),
        (["fit", *QUICKSTART, "--trainer.max_epochs"], "argument --trainer.max_epochs: expected one argument"),
    ],
)
def test_incomplete_command_line(arguments, expected, capsys):
    assert error_of(arguments, capsys).startswith(expected.replace("{here}", str(Path.cwd())))


# -- settings that cannot work ---------------------------------------------------------------------------------------


class Unsupported(nn.Sequential):
    """A classifier with a layer that no verifier can bound."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(784, 10), Sorting())


class Sorting(nn.Module):
    """Sorts the logits."""

    def forward(self, x):
        return x.sort(1).values


class OtherMethod(ContextualBudgets):
    """Another method."""


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("model.epsilon=1.5", "model.epsilon: got 1.5; give epsilon0 in (0, 1]"),
        ("model.epsilon=0", "model.epsilon: got 0.0; give epsilon0 in (0, 1]"),
        ("model.alpha_low=1.5", "model.alpha_low: got 1.5; give a value in (0, 1]"),
        ("model.alpha_high=0.5", "model.alpha_high: got 0.5; give a value of at least 1"),
        ("model.classifier.num_classes=7", "model.classifier: got 'DMSmall with output (7,)'; the data has 10 classes"),
        (
            "model.classifier.image_shape=[3,28,28]",
            "model.classifier: got 'DMSmall'; the data's images are (1, 28, 28)",
        ),
        (
            "model.generator.channels=3",
            "model.generator.channels: got 3; the images have 1 channels; give that",
        ),
        (
            "model.generator=torch.nn.Flatten",
            "model.generator: got 'Flatten with output (784,)'; give a network with output (1, 28, 28)",
        ),
        (
            f"model.classifier={__name__}.Unsupported",
            "model.verifier: got 'auto'; Unsupported: FeedForwardVerifier has no bound for network layer '2': got 's",
        ),
        (
            f"model.lr_scheduler={PIECEWISE}",
            "model.lr_scheduler.epochs: got [2.0, 1.0]; give increasing epochs, at least one",
        ),
        ("data.batch_size=0", "data.batch_size: got 0; give 1 or more"),
        ("model.epsilon=null", "model.epsilon: got None; give a number"),
        ("data.batch_size=null", "data.batch_size: got None; give a whole number"),
        (
            "model.classifier.image_shape=null",
            "model.classifier.image_shape: got 'None'; give [channels, height, width]",
        ),
        ("trainer.strategy=nonsense", "trainer.strategy: got 'nonsense'; give one of auto, ddp, "),
        ("trainer.accelerator=nonsense", "trainer.accelerator: got 'nonsense'; give one of auto, "),
        ("epsilon_schedule.length=0", "epsilon_schedule.length: got 0; give at least 1 epoch"),
        ("trainer.gradient_clip_val=1", "trainer.gradient_clip_val: got 1; leave it out and set model.gradient_clip"),
        ("ckpt_path=nowhere.ckpt", "ckpt_path: got 'nowhere.ckpt'; no such file; give a checkpoint that fit wrote"),
    ],
)
def test_setting_that_cannot_work(setting, expected, tmp_path, capsys):
    arguments = ["fit", *TINY, *FEW_BATCHES, f"--{setting}", f"--trainer.default_root_dir={tmp_path}"]
    assert error_of(arguments, capsys).startswith(expected)
    assert not list(tmp_path.rglob("*.ckpt")), "nothing was trained"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "(No such file or directory); add --data.download true"),
        (b"cut off", "is damaged (7 bytes instead of 47,040,016); delete it and add --data.download true"),
    ],
    ids=["missing", "truncated"],
)
def test_data_files(content, expected, tmp_path, capsys):
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    if content:
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
    data = ["--data=MNIST", f"--data.root={tmp_path}"]
    line = error_of(["fit", *TINY, *data, f"--trainer.default_root_dir={tmp_path}"], capsys)
    assert line.startswith(f"data.root: got '{tmp_path}'; ")
    assert str(file) in line
    assert expected in line


@pytest.mark.thorough
def test_checkpoint_that_does_not_fit(trained, tmp_path, capsys):
    def error(path, *settings):
        folder = f"--trainer.default_root_dir={tmp_path}"
        return error_of(["test", *TINY, *settings, f"--ckpt_path={path}", folder], capsys)

    path = last_checkpoint(trained)
    other_method = error(path, f"--model={__name__}.OtherMethod")
    assert other_method.startswith(
        "ckpt_path: got 'a checkpoint of ContextualBudgets'; this is OtherMethod; give one of"
    )
    other_network = error(path, "--model.generator=null")
    assert other_network.startswith("ckpt_path: got 'a checkpoint that differs in 10 tensors, the first is generator.")
    truncated = tmp_path / "truncated.ckpt"
    truncated.write_bytes(path.read_bytes()[:1000])
    assert error(truncated).startswith(f"ckpt_path: got '{truncated}'; its end is missing, or it is of another kind")


def test_schedule_longer_than_the_run_is_a_warning(tmp_path):
    with pytest.warns(UserWarning, match=r"epsilon_schedule.length: the ramp ends with epoch 10, after trainer"):
        run("fit", tmp_path, *FEW_BATCHES, "--epsilon_schedule.length=9")


def test_loss_that_is_not_finite_stops_training(tmp_path, capsys):
    explode = ["--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.001", "--model.gradient_clip=null"]
    explode += [f"--model.lr_scheduler={STEP}", "--model.lr_scheduler.milestones=[1]", "--model.lr_scheduler.gamma=1e9"]
    few = ["--trainer.limit_val_batches=1", "--test_after_fit=false", f"--trainer.default_root_dir={tmp_path}"]
    line = error_of(["fit", *TINY, *explode, *few], capsys)
    assert line.startswith(("loss: got nan in epoch 1; training stopped", "loss: got inf in epoch 1; training stopped"))

    path = last_checkpoint(tmp_path / "lightning_logs" / "version_0")
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["epoch"] == 0
    assert all(weight.isfinite().all() for weight in checkpoint["state_dict"].values())
    resumed = run("fit", tmp_path, *explode, *few[:2], f"--ckpt_path={path}", "--model.gradient_clip=1e-12")
    assert torch.load(last_checkpoint(resumed), weights_only=True)["epoch"] == 1


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("alpha_low", 1.5, "model.alpha_low: got 1.5; remedy"),
        ("image_shape", (1, 8, 8), "model.generator.image_shape: got (1, 8, 8); remedy"),
        ("generator", "BudgetGenerator", "model.generator: got 'BudgetGenerator'; remedy"),
        ("steps", 5, "steps: got 5; remedy"),  # two attacks have it: the path is ambiguous
        ("steps", 7, "steps: got 7; remedy"),
        ("steps", 10, "trainer.callbacks.0.attacks.c.steps: got 10; remedy"),
        ("epsilon", 5.0, "trainer.callbacks.0.attacks.d.epsilon: got 5.0; remedy"),  # not of a class
        ("data.batch_size", 500, "data.labelled.batch_size: got 500; remedy"),  # 500 is not its value in the config
        ("data.augmentation.padding", 40, "data.labelled.augmentation.padding: got 40; remedy"),
        ("data.labelled_fraction", 0.3, "data.labelled_fraction: got 0.3; remedy"),
        ("data.unknown", 1, "data.unknown: got 1; remedy"),
    ],
)
def test_an_error_that_names_an_argument_gets_its_path(name, value, expected):
    generator = {"class_path": "robust.networks.BudgetGenerator", "init_args": {"image_shape": [1, 8, 8]}}
    attacks = {key: {"class_path": "robust.attacks.PGD", "init_args": {"steps": 5}} for key in "ab"}
    attacks["c"] = {"class_path": "robust.attacks.APGD", "init_args": {"steps": 10}}
    attacks["d"] = {"attack": "robust.attacks.FGSM", "norm": "linf", "epsilon": 5.0}
    model = {"alpha_low": 1.5, "generator": generator}
    labelled = {"class_path": "datamodules.Digits", "init_args": {"batch_size": 8, "augmentation": None}}
    evaluation = {"class_path": "callbacks.AdversarialEvaluation", "init_args": {"attacks": attacks}}
    config = {
        "model": {"class_path": "lightning_modules.ContextualBudgets", "init_args": model},
        "data": {
            "class_path": "datamodules.SemiSupervised",
            "init_args": {"labelled": labelled, "labelled_fraction": 0.5},
        },
        "trainer": {"callbacks": [evaluation]},
    }
    assert str(with_path(SettingError(name, value, "remedy"), config)) == expected


@pytest.mark.parametrize("method", ["standard_training", "wasserstein_autoencoder"])
def test_a_ramp_of_a_training_without_epsilon_is_an_error(method, tmp_path, capsys):
    arguments = ["fit", f"--config={CONFIGS / method / 'digits.yaml'}", "--epsilon_schedule.shape=linear"]
    name = method.title().replace("_", "")
    expected = f"epsilon_schedule.shape: got 'linear'; the training of {name} has no epsilon to ramp; give constant"
    assert error_of([*arguments, f"--trainer.default_root_dir={tmp_path}"], capsys) == expected


@pytest.mark.thorough_but("two schedules")
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            ["--trainer.callbacks+={class_path: callbacks.EpsilonScheduler, init_args: {shape: linear}}"],
            "trainer.callbacks: got 'several EpsilonScheduler'; leave it out of trainer.callbacks and set eps",
        ),
        (
            ["--trainer.callbacks+={class_path: EarlyStopping, init_args: {monitor: val/accuracy/clean, mode: max}}"],
            "trainer.callbacks.EarlyStopping.monitor: got 'val/accuracy/clean'; nothing logs it in this training; give",
        ),
        (
            ["--trainer.callbacks+={class_path: GradientAccumulationScheduler, init_args: {scheduling: {0: 2}}}"],
            "trainer.callbacks: got 'GradientAccumulationScheduler'; the methods step their optimizers themselves",
        ),
        (
            ["--trainer.callbacks+=LearningRateFinder"],
            "trainer.callbacks: got 'LearningRateFinder'; the methods have rates of several optimizers",
        ),
        (
            ["--trainer.precision=transformer-engine"],
            "package: got 'transformer_engine>=0.11.0'; a setting needs it; install it: pip install",
        ),
        (
            ["--trainer.callbacks+=BatchSizeFinder"],
            "trainer.callbacks: got 'BatchSizeFinder'; a smaller or larger batch is another training; leave it out",
        ),
        (
            ["--trainer.callbacks+=BackboneFinetuning"],
            "trainer.callbacks: got 'BackboneFinetuning'; methods have several networks and no backbone; freeze",
        ),
        (
            ["--test_after_fit=true", "--trainer.limit_test_batches=0"],
            "trainer.limit_test_batches: got 0; there would be nothing to test; ",
        ),
    ],
    ids=["two schedules", "early stopping", "accumulation", "rates", "package", "batch size", "backbone", "no test"],
)
def test_what_lightning_refuses_is_named(settings, expected, tmp_path, capsys):
    arguments = [*SMALL, *QUIET, "--trainer.limit_val_batches=0", f"--trainer.default_root_dir={tmp_path}"]
    assert error_of(["fit", *arguments, *settings], capsys).startswith(expected)


def test_the_package_that_device_stats_need_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pytorch_lightning.accelerators.cpu._PSUTIL_AVAILABLE", False)
    arguments = [*SMALL, *QUIET, f"--trainer.default_root_dir={tmp_path}", "--trainer.callbacks+=DeviceStatsMonitor"]
    error = error_of(["fit", *arguments, "--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path}"], capsys)
    assert error == "package: got 'psutil'; a setting needs it; install it: pip install 'psutil'"
