"""Accuracy curves equal a plain computation; the table, the figure, the settings; two processes."""

import copy

import pytest
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import AccuracyCurve
from callbacks.evaluation.accuracy_curve import Point, draw_curves, read_curves, write_curves
from datamodules import Digits
from robust.attacks import FGSM, PGD
from robust.errors import SettingError
from robust.networks import Noisy
from robust.threat_models import LinfBall
from tests.callbacks.trained import Plain, images, stored, trainer_with

ATTACKS = {"fgsm": FGSM(), "pgd": PGD(3, start="clean")}


def test_points_equal_a_plain_computation(trained, tmp_path):
    x, y = images()
    clean = trained(x).argmax(1) == y
    expected = {}
    for name, attack in ATTACKS.items():
        expected[name] = [(0.0, clean.float().mean().item(), 0.0)]
        for epsilon in (0.02, 0.05):
            x_adv = attack(trained, LinfBall(epsilon), x, y)
            fraction = (clean & (trained(x_adv).argmax(1) == y)).float().mean().item()
            expected[name].append((epsilon, fraction, 0.0))

    curve = AccuracyCurve(ATTACKS, [0.05, 0.02])
    trainer = trainer_with(curve, default_root_dir=tmp_path)
    trainer.logger = TensorBoardLogger(tmp_path, name="", version="")
    logged = trainer.test(trained, Digits(eval_batch_size=64), verbose=False)[0]
    written = read_curves(tmp_path / "accuracy_curve.csv")
    assert written.keys() == ATTACKS.keys()
    for name, points in expected.items():
        assert torch.tensor(written[name]).allclose(torch.tensor(points), atol=1e-6)
        for epsilon, fraction, _ in points:
            assert logged[f"test/accuracy_curve/{name}/linf_{epsilon:g}"] == pytest.approx(fraction, abs=1e-6)
    assert (tmp_path / "accuracy_curve.png").stat().st_size > 5000
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["images"] == ["test/accuracy_curve"]


def test_curves_of_another_norm_are_refused_and_early_files_have_none(tmp_path):
    """Regression: they were drawn on one axis."""
    path = tmp_path / "accuracy_curve.csv"
    write_curves(path, {"pgd": [Point(1.5, 0.5, 0.0)]}, "l2")
    assert AccuracyCurve(ATTACKS, [0.1], norm="l2", compare={"other": str(path)}).others
    with pytest.raises(SettingError, match=r"AccuracyCurve\.compare: got '.*'; its radii are in l2, not in linf"):
        AccuracyCurve(ATTACKS, [0.1], compare={"other": str(path)})
    path.write_text("attack,epsilon,accuracy,std\npgd,0.1,0.5,0.0\n")
    assert read_curves(path, "l1") == {"pgd": [Point(0.1, 0.5, 0.0)]}


def test_networks_with_noise_have_a_mean_and_bars(trained, tmp_path):
    network = Noisy(copy.deepcopy(trained.classifier), ["0"], (1, 28, 28), initial_scale=1.0)
    curve = AccuracyCurve({"fgsm": FGSM()}, [0.02], num_samples=5)
    trainer = trainer_with(curve, default_root_dir=tmp_path)
    logged = trainer.test(Plain(network, epsilon=0.05), Digits(), verbose=False)[0]
    clean, attacked = read_curves(tmp_path / "accuracy_curve.csv")["fgsm"]
    assert clean.accuracy > attacked.accuracy > 0
    for point in (clean, attacked):
        assert 0 < point.std < 0.05
        name = f"test/accuracy_curve/fgsm/linf_{point.epsilon:g}/std"
        assert logged[name] == pytest.approx(point.std, abs=1e-6)


def test_other_runs_are_drawn_too(tmp_path):
    table = tmp_path / "accuracy_curve.csv"
    table.write_text("attack,epsilon,accuracy,std\npgd,0.0,0.9,0.01\npgd,0.1,0.4,0.02\n")
    curve = AccuracyCurve(ATTACKS, [0.1], compare={"PNI": str(table)})
    (axes,) = draw_curves(curve.others).axes
    (line,) = [container.lines[0] for container in axes.containers]
    assert line.get_xdata().tolist() == [0.0, 0.1]
    assert line.get_ydata().tolist() == [90.0, 40.0]
    assert axes.get_legend().get_texts()[0].get_text() == "PNI, pgd"


@pytest.mark.parametrize(
    ("setting", "value"),
    [("attacks", {}), ("epsilons", []), ("epsilons", [0.0, 0.1]), ("num_samples", 0), ("compare", {"a": "none.csv"})],
)
def test_wrong_settings(setting, value):
    with pytest.raises(SettingError, match=rf"^AccuracyCurve.{setting}: got"):
        AccuracyCurve(**({"attacks": ATTACKS, "epsilons": [0.1]} | {setting: value}))


def test_a_validation_warns_of_an_evaluation_that_runs_in_tests_alone():
    """Regression: it was skipped without a word."""
    curve = AccuracyCurve(ATTACKS, [0.1])
    with pytest.warns(UserWarning, match=r"^AccuracyCurve does not run in validation; run it by train\.py test$"):
        trainer_with(curve, limit_val_batches=1).validate(stored(), Digits(), verbose=False)
