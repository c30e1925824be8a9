"""The callbacks that measure robustness scores, and accuracy by group."""

import copy
import csv

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import nn

from callbacks import GroupAccuracy, RobustnessScore, SampledRobustness
from datamodules import MNISTC, Digits
from robust.attacks import FGSMGrid, LinearizedBoundary
from robust.errors import NonFiniteLogitsError, SettingError
from robust.metrics import SampledScore
from robust.networks import Autoencoder, Noisy
from robust.scores import R3, R4, NetworkLabels, OnManifold, SameLabel, Score, Weight, draw_epsilons, nearest_boundary
from tests.callbacks.trained import Plain, images, trainer_with

FAST = {"bg": LinearizedBoundary(), "fgsm": FGSMGrid()}


def score(folder, callback, trained, stage="test", **settings):
    trainer = trainer_with(callback, default_root_dir=folder, **settings)
    getattr(trainer, stage)(trained, datamodule=Digits(eval_batch_size=32), verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_r2_of_the_test_set_its_table_and_its_figure(trained, tmp_path):
    metrics = score(tmp_path, RobustnessScore(FAST), trained)
    x, y = images()
    expected = nearest_boundary(trained, FAST, x)
    assert metrics["test/robustness_score/r2"] == pytest.approx(float(expected.margin.double().mean()), rel=1e-3)
    assert metrics["test/robustness_score/r2/area"] == pytest.approx(metrics["test/robustness_score/r2"], rel=0.01)
    assert metrics["test/robustness_score/r2/failed"] == 0
    assert metrics["test/robustness_score/r2/samples"] == 299
    fractions = [metrics[f"test/robustness_score/r2/closest/{name}"] for name in FAST]
    assert fractions == pytest.approx([float((expected.attack == k).float().mean()) for k in range(2)], abs=0.01)
    assert sum(fractions) == pytest.approx(1)
    table = rows(tmp_path / "robustness_score" / "test_margins.csv")
    assert [int(row["sample"]) for row in table] == list(range(299))
    assert [int(row["label"]) for row in table] == y.tolist()
    assert [int(row["prediction"]) for row in table] == trained(x).argmax(1).tolist()
    assert sum(float(row["margin"]) for row in table) / 299 == pytest.approx(
        metrics["test/robustness_score/r2"], rel=1e-6
    )
    for row in table:
        assert float(row["margin"]) == min(float(row["bg"]), float(row["fgsm"])) == float(row[row["attack"]])
    assert (tmp_path / "robustness_score" / "test_curve.png").stat().st_size > 5000


def test_the_curve_is_on_tensorboard(trained, tmp_path):
    logger = TensorBoardLogger(tmp_path)
    trainer = pl.Trainer(
        accelerator="cpu", logger=logger, callbacks=[RobustnessScore(FAST, max_test_batches=1)],
        enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.test(trained, datamodule=Digits(eval_batch_size=16), verbose=False)
    assert trainer.callback_metrics["test/robustness_score/r2/samples"] == 16
    assert trainer.callback_metrics["test/accuracy/clean"] > 0.8  # of all images
    (events,) = (tmp_path / "lightning_logs").rglob("events*")
    assert b"test/margin_curve" in events.read_bytes()


def test_validation_when_asked_and_in_training_after_some_epochs(trained, tmp_path):
    callback = RobustnessScore(FAST, max_batches=1)
    metrics = score(tmp_path, callback, trained, stage="validate")
    assert metrics["val/robustness_score/r2/samples"] == 32
    assert metrics["val/robustness_score/r2"] > 0
    seen = {}

    class Watch(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen[trainer.current_epoch] = "val/robustness_score/r2" in trainer.callback_metrics

    module = Plain(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), epsilon=0.1)
    few = {"max_epochs": 3, "limit_train_batches": 1}
    trainer = trainer_with(
        RobustnessScore(FAST, every_n_epochs=2, max_batches=1), Watch(), default_root_dir=tmp_path, **few
    )
    trainer.fit(module, datamodule=Digits(eval_batch_size=8))
    assert not seen[0]
    assert seen[1]


def test_a_stochastic_network_has_no_margin(trained, tmp_path):
    module = Plain(Noisy(nn.Sequential(nn.Linear(28, 28), nn.Flatten(), nn.Linear(784, 10)), ["0"], (1, 28, 28)), 0.1)
    autoencoder = Autoencoder(code_size=2, width=1)
    for callback in (RobustnessScore(FAST), SampledRobustness(R4(OnManifold(autoencoder)))):
        with pytest.raises(SettingError, match="model: got 'Plain'; its predictions differ from pass to pass"):
            score(tmp_path, callback, module)
        with pytest.raises(SettingError, match="its predictions differ from pass to pass"):
            callback.evaluate(module, torch.zeros(1, 1, 28, 28), torch.zeros(1).long())  # noise that began later


@pytest.fixture
def sampler():
    torch.manual_seed(0)
    autoencoder = Autoencoder(code_size=3, width=1)
    with torch.no_grad():
        for name, parameter in autoencoder.named_parameters():
            if name.endswith("weight"):
                parameter.mul_(30)  # images that are not grey all over
    return OnManifold(autoencoder, num_samples=6, sigma=1.0)


def test_r4_and_its_record(trained, sampler, tmp_path):
    metrics = score(tmp_path, SampledRobustness(R4(sampler), epsilons=50, seed=4), trained)
    record = torch.load(tmp_path / "robustness_score" / "test_r4.pt", weights_only=True)
    epsilons = draw_epsilons(50, (1, 28, 28), 4)
    assert torch.equal(record["epsilons"], epsilons)
    assert record["seed"] == 4
    assert torch.equal(record["index"], torch.arange(299))
    assert record["codes"].shape == (299, 6, 3)
    x, _ = images()
    agrees, distances = [], []
    for image, codes in zip(x, record["codes"], strict=True):
        samples = sampler.autoencoder.decode(codes).clamp(0, 1)
        agrees.append(trained(samples).argmax(1) == trained(image[None]).argmax(1))
        distances.append((samples - image).flatten(1).norm(dim=1))
    total = 0.0
    for epsilon in epsilons.tolist():
        for same, distance in zip(agrees, distances, strict=True):
            near = same[distance < epsilon]
            total += (float(near.double().mean()) if len(near) else 1.0) / epsilon
    expected = total / 299 / 50
    assert 0.05 < torch.stack(agrees).double().mean() < 0.95
    assert metrics["test/robustness_score/r4"] == pytest.approx(expected, rel=1e-3)
    assert metrics["test/robustness_score/r4/normalized"] == pytest.approx(
        expected / float((1 / epsilons).mean()), rel=1e-3
    )
    assert metrics["test/robustness_score/r4/integral"] == pytest.approx(28 * expected, rel=1e-3)
    assert metrics["test/robustness_score/r4/samples"] == 299


def test_a_score_with_an_own_reward_is_normalized_by_a_constant_classifier(trained, sampler, tmp_path):
    """Also where H(1) is not 1."""
    constant = Plain(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), epsilon=0.1)
    nn.init.zeros_(constant.classifier[1].weight)
    for name, module, expected in (("constant", constant, 1.0), ("trained", trained, None)):
        twice = SampledRobustness(Score(sampler, lambda measure: 2 * measure, Weight("data", power=-1)), 20, "twice")
        metrics = score(tmp_path / name / "own", twice, module)
        once = score(tmp_path / name / "r4", SampledRobustness(R4(sampler), 20), module)
        found = metrics["test/robustness_score/twice/normalized"]
        assert found == pytest.approx(once["test/robustness_score/r4/normalized"] if expected is None else expected)
        assert metrics["test/robustness_score/twice"] == pytest.approx(2 * once["test/robustness_score/r4"])


def test_all_models_have_the_same_draws(trained, sampler, tmp_path):
    other = Plain(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), epsilon=0.1)
    records = []
    for name, module, batch in (("one", trained, 32), ("two", other, 50)):
        torch.manual_seed(len(records))
        trainer = trainer_with(SampledRobustness(R4(sampler), epsilons=20), default_root_dir=tmp_path / name)
        trainer.test(module, datamodule=Digits(eval_batch_size=batch), verbose=False)
        records.append(torch.load(tmp_path / name / "robustness_score" / "test_r4.pt", weights_only=True))
    assert torch.equal(records[0]["epsilons"], records[1]["epsilons"])
    torch.testing.assert_close(records[0]["codes"], records[1]["codes"])
    assert not torch.equal(records[0]["measure"], records[1]["measure"])


def test_neighbours_of_one_label_by_a_network(trained, sampler, tmp_path):
    """With the classifier's own labels, every neighbour of an image's label is classified like the image."""
    labels = NetworkLabels(copy.deepcopy(trained.classifier))
    plain = SampledRobustness(R3(sampler), epsilons=20)
    aware = SampledRobustness(R3(SameLabel(sampler, labels)), epsilons=20, name="r3_same_label")
    trainer = trainer_with(plain, aware, default_root_dir=tmp_path)
    trainer.test(trained, datamodule=Digits(eval_batch_size=32), verbose=False)
    metrics = trainer.callback_metrics
    assert metrics["test/robustness_score/r3_same_label"] == 1
    assert 0 < metrics["test/robustness_score/r3"] < 1
    assert (tmp_path / "robustness_score" / "test_r3_same_label.pt").is_file()


def test_two_scores_of_one_name_are_an_error(trained, sampler, tmp_path):
    trainer = trainer_with(*(SampledRobustness(R3(sampler)) for _ in range(2)), default_root_dir=tmp_path)
    with pytest.raises(SettingError, match="got '2 x SampledRobustness'"):
        trainer.test(trained, datamodule=Digits(eval_batch_size=32), verbose=False)


def test_logits_that_are_not_finite_give_no_labels():
    with pytest.raises(NonFiniteLogitsError):
        NetworkLabels(nn.Flatten())(torch.full((2, 1, 1, 2), float("nan")))


def test_weights_of_another_network_give_no_labels():
    with pytest.raises(SettingError, match="weights: got 'zoo:digits_standard_training'"):
        NetworkLabels(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), "zoo:digits_standard_training")


def test_accuracy_of_each_corruption_and_their_mean(written, tmp_path):
    data = MNISTC(root=str(written), eval_batch_size=7)
    module = Plain(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), epsilon=0.1)
    trainer = trainer_with(GroupAccuracy(), default_root_dir=tmp_path)
    trainer.test(module, datamodule=data, verbose=False)
    metrics = trainer.callback_metrics
    assert len(data.groups) == 15
    means = []
    for name in data.groups:
        part = data.load_corruption(name)
        x, y = part[torch.arange(len(part))]
        means.append(float((module(x).argmax(1) == y).double().mean()))
        assert float(metrics[f"test/accuracy/group/{name}"]) == pytest.approx(means[-1])
    assert float(metrics["test/accuracy/group/mean"]) == pytest.approx(sum(means) / 15)
    assert float(metrics["test/accuracy/group/mean"]) == pytest.approx(float(metrics["test/accuracy/clean"]))


def test_a_part_of_the_corruptions_or_other_data_is_an_error(written, trained, tmp_path):
    for limit in (1, 2):
        trainer = trainer_with(GroupAccuracy(), default_root_dir=tmp_path, limit_test_batches=limit)
        with pytest.raises(SettingError, match=rf"trainer\.limit_test_batches: got {limit}"):
            trainer.test(trained, datamodule=MNISTC(root=str(written)), verbose=False)
    with pytest.raises(SettingError, match="data: got 'Digits'; GroupAccuracy needs data in groups"):
        trainer_with(GroupAccuracy()).test(trained, datamodule=Digits(), verbose=False)
    with pytest.raises(SettingError, match=r"mnist_c.*shot_noise"):
        trainer_with(GroupAccuracy()).test(trained, datamodule=MNISTC(root=str(tmp_path)), verbose=False)


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric SampledScore was called before")
def test_a_score_needs_at_least_one_image():
    assert SampledScore(torch.ones(2), torch.ones(2), 1.0).compute()["mean"].isnan()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RobustnessScore({}), r"RobustnessScore\.attacks: got \{\}"),
        (lambda: RobustnessScore(FAST, halvings=0), r"RobustnessScore\.halvings: got 0"),
        (lambda: RobustnessScore(FAST, every_n_epochs=0), r"RobustnessScore\.every_n_epochs: got 0"),
        (lambda: RobustnessScore(FAST, max_batches=0), r"RobustnessScore\.max_batches: got 0"),
        (lambda: RobustnessScore(FAST, max_test_batches=0), r"RobustnessScore\.max_test_batches: got 0"),
        (lambda: SampledRobustness(None, epsilons=0), r"SampledRobustness\.epsilons: got 0"),
        (lambda: SampledRobustness(None, name="a/b"), r"SampledRobustness\.name: got 'a/b'"),
    ],
)
def test_wrong_settings(make, message):
    with pytest.raises(SettingError, match=message):
        make()
