"""Settings that a constructor passes on as ``**settings`` are typed, printed and checked like its own."""

import inspect

import pytest
import yaml
from torch import nn

import datamodules
import lightning_modules
import train
from cli.errors import types_of_settings
from datamodules import MNISTC, ImageDataModule, WatermarkedDigits
from lightning_modules import TRADES, YOPO, FreeAdversarialTraining, TrainingModule
from tests.testers import ROOT, error_of

# a method whose settings come from four constructors, and data whose settings come from two
ARGUMENTS = ["fit", f"--config={ROOT / 'configs' / 'trades' / 'digits.yaml'}", "--data=WatermarkedDigits"]
YOPO_ARGUMENTS = ["fit", f"--config={ROOT / 'configs' / 'yopo' / 'digits.yaml'}"]
OWN = {"classifier", "beta", "attack", "optimizer"}
HANDED_ON = {"epsilon", "weights", "norm", "lr_scheduler", "gradient_clip"}


def concrete(package, base):
    kinds = [vars(package)[name] for name in package.__all__ if name != "SemiSupervised"]  # it passes on no settings
    return [kind for kind in kinds if inspect.isclass(kind) and issubclass(kind, base) and not inspect.isabstract(kind)]


def printed(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main([*arguments, "--print_config"])
    assert stop.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("model.gradient_clip=x", "model.gradient_clip: got 'x'; give a number or null"),
        ("model.epsilon=x", "model.epsilon: got 'x'; give a number"),
        ("model.norm=l3", "model.norm: got 'l3'; give one of "),
        ("model.optimizer=torch.nn.ReLU", "model.optimizer: got 'torch.nn.ReLU'; it is not one of "),
        ("data.batch_size=x", "data.batch_size: got 'x'; give a whole number"),
        ("data.compositing=x", "data.compositing: got 'x'; give one of "),
    ],
)
def test_they_keep_their_types(setting, expected, capsys):
    assert expected in error_of([*ARGUMENTS, f"--{setting}"], capsys)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("model.gradient_clp=1", "model.gradient_clp: got '1'; no such setting, did you mean model.gradient_clip?"),
        ("model.lr_schedule=x", "model.lr_schedule: got 'x'; no such setting, did you mean model.lr_scheduler?"),
        ("data.batchsize=3", "data.batchsize: got '3'; no such setting, did you mean data.batch_size?"),
    ],
)
def test_the_nearest_one_is_named(setting, expected, capsys):
    assert error_of([*ARGUMENTS, f"--{setting}"], capsys) == expected


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("model.epsilon=null", "model.epsilon: got None; give a number"),
        ("data.batch_size=null", "data.batch_size: got None; give a whole number"),
    ],
)
def test_null_is_refused_if_the_type_excludes_it(setting, expected, capsys, tmp_path):
    arguments = [*ARGUMENTS, f"--{setting}", f"--trainer.default_root_dir={tmp_path}"]
    assert expected in error_of(arguments, capsys)


def test_print_config_shows_all_of_them_with_their_defaults(capsys):
    config = printed(ARGUMENTS, capsys)
    assert config["model"]["init_args"].keys() == OWN | HANDED_ON
    assert config["model"]["init_args"]["gradient_clip"] is None
    assert config["data"]["init_args"] == {
        "compositing": "max",
        "watermark_seed": 0,
        "augmentation": None,
        "batch_size": 32,  # the config's
        "eval_batch_size": 256,
        "num_workers": 0,
        "seed": None,
        "test_images": None,
    }


@pytest.mark.parametrize("setting", ["norm", "attack"])
def test_a_fixed_argument_is_no_setting(setting, capsys):
    assert setting not in printed(YOPO_ARGUMENTS, capsys)["model"]["init_args"]
    assert f"model.{setting}: got 'x'; no such setting" in error_of([*YOPO_ARGUMENTS, f"--model.{setting}=x"], capsys)
    with pytest.raises(TypeError, match=setting):
        YOPO(network(), "0", **{setting: None})
    with pytest.raises(TypeError, match=setting):
        FreeAdversarialTraining(network(), **{setting: None})


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 2))


def test_the_most_derived_constructor_decides_the_type():
    assert types_of_settings("lightning_modules.StandardTraining").keys() >= {"classifier", "epsilon", "gradient_clip"}
    assert types_of_settings("lightning_modules.RobustnessScoreTraining")["generator"] is nn.Module
    assert types_of_settings("lightning_modules.MNGAC")["generator"] == nn.Module | None
    assert "verify_checksums" not in types_of_settings("datamodules.MNISTC")


@pytest.mark.parametrize("method", concrete(lightning_modules, TrainingModule))
def test_a_wrong_keyword_of_a_method_is_a_type_error(method):
    required = {
        name: nn.Identity()
        for name, given in inspect.signature(method).parameters.items()
        if given.default is given.empty and given.kind is not given.VAR_KEYWORD
    }
    required |= {"first_layer": "0", "classifier": network()} if method is YOPO else {}
    with pytest.raises(TypeError, match="unexpected keyword argument 'epsilonn'"):
        method(**required, epsilonn=0.1)


@pytest.mark.parametrize("data", concrete(datamodules, ImageDataModule))
def test_a_wrong_keyword_of_a_data_module_is_a_type_error(data):
    files = {"image_size": 8}
    required = {"ImageFolder": files | {"root": "a"}, "Table": files | {"csv": "a"}, "Arrays": {"path": "a"}}
    with pytest.raises(TypeError, match="unexpected keyword argument 'batchsize'"):
        data(**required.get(data.__name__, {}), batchsize=3)


def test_the_arguments_reach_the_bases():
    module = TRADES(network(), epsilon=0.2, norm="l2", gradient_clip=3.0, beta=1.0)
    assert (module.epsilon, module.norm, module.gradient_clip, module.beta) == (0.2, "l2", 3.0, 1.0)
    data = WatermarkedDigits(batch_size=7, watermark_seed=3)
    assert (data.batch_size, data.watermark_seed) == (7, 3)
    with pytest.raises(TypeError, match="batch_size"):
        MNISTC(batch_size=3)
