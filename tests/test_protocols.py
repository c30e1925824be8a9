"""The protocols behind checkpoints and networks of every kind, and what they measure and show."""

import sys

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from callbacks import AdversarialEvaluation, AttackCase, CertifiedEvaluation, GradientMaskingChecks, RobustnessScore
from datamodules import MNIST
from datamodules.loading import TensorImages
from lightning_modules import ContextualBudgets
from robust.attacks import PGD
from robust.errors import SettingError
from robust.metrics.confidence import wilson_interval
from robust.networks import Autoencoder, BudgetGenerator, DMSmall
from tests.callbacks.trained import Plain, measured, small, stored
from tests.testers import ROOT, assert_registered, results_in, run

FOLDER = ROOT / "configs" / "evaluation"
DIGITS = FOLDER / "protocol_digits.yaml"
PROTOCOLS = sorted(path.stem for path in FOLDER.glob("protocol_*.yaml"))
QUICKSTART = [f"--config={ROOT / 'configs' / 'quickstart.yaml'}", "--trainer.callbacks=[]"]
QUIET = ["--trainer.logger=false", "--trainer.enable_progress_bar=false"]
FEW = ["--data.test_images=6", "--data.eval_batch_size=3"]
pytestmark = pytest.mark.filterwarnings("error:ckpt_path. got None", "ignore:gradient masking")


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """The log folder of a step of training with learned budgets, and of a test with the smallest of the protocols."""
    root = tmp_path_factory.mktemp("logged")
    short = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1", *FEW]
    short += ["--trainer.log_every_n_steps=1", "--epsilon_schedule.start_epoch=1", "--epsilon_schedule.length=1"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.num_sanity_val_steps=0"]
    protocol = f"--config={FOLDER / 'protocol_quick.yaml'}"
    train.main(["fit", *QUICKSTART, protocol, *short, *quiet, f"--trainer.default_root_dir={root}"])
    return root / "lightning_logs" / "version_0"


@pytest.mark.thorough
def test_tensorboard_and_hparams_show_the_registrys_names(logged):
    expected = results_in(logged / "results.json")["metrics"]
    scalars, hparams = (
        set(EventAccumulator(str(folder)).Reload().Tags()["scalars"]) for folder in (logged, logged / "hparams")
    )
    for stage in ("val", "test"):
        names = {name for name in expected if name.startswith(f"{stage}/")}
        assert names
        assert {name for name in scalars if name.startswith(f"{stage}/")} == names
        assert {name for name in hparams if name.startswith(f"{stage}/")} == names
    assert_registered(scalars - {"epoch"})
    assert_registered(hparams)


def test_a_protocol_measures_what_the_page_says(logged):
    record = results_in(logged / "results.json")
    metrics = record["metrics"]
    assert_registered(metrics)
    balls = {"linf": "linf_0.1", "l2": "l2_1.5", "l1": "l1_12"}
    expected = {f"accuracy/{attack}/{ball}" for attack in ("pgd", "apgd", "apgd_targeted") for ball in balls.values()}
    expected |= {"accuracy/clean", "accuracy/union", "accuracy/average"}
    expected |= {f"accuracy/worst/{norm}" for norm in balls} | {f"accuracy/square/{ball}" for ball in balls.values()}
    expected |= {f"certified_accuracy/{model}{bound}" for model in ("linf_0.1", "own_budgets_0.1")
                 for bound in ("", "/ibp", "/crown_ibp")}  # fmt: skip
    expected |= {"accuracy/a_rob/linf_0.1", "weighted_accuracy/a_sa/linf_0.1/alpha_1", "robustness_score/r2"}
    expected |= {"weighted_accuracy/a_tr/linf_0.1/alpha_2", "masking/failed_checks"}
    expected |= {f"masking/accuracy/more_steps/{ball}" for ball in balls.values()}
    assert {f"test/{name}" for name in expected} <= metrics.keys()
    assert record["samples"]["test"] == 6
    assert record["skipped"] == {}
    low, high = record["intervals"]["test/accuracy/clean"]
    assert (low, high) == pytest.approx(wilson_interval(metrics["test/accuracy/clean"], 6, 299))


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_protocols_have_the_same_parts(name):
    content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    if "config" in content:
        content = yaml.safe_load((FOLDER / content["config"]).read_text())
    callbacks, first = (each["trainer.callbacks+"] for each in (content, yaml.safe_load(DIGITS.read_text())))
    more = [each for each in callbacks if each["class_path"] in ("CorruptedAccuracy", "SampledRobustness")]
    assert all(each["init_args"]["where_possible"] for each in more)
    assert len(more) == {"protocol_mnist": 2, "protocol_cifar10": 2}.get(name, 0)
    (attacks,) = (each["init_args"] for each in callbacks if each["class_path"] == "AdversarialEvaluation")
    assert attacks["where_possible"]
    if more:
        assert attacks["attacks"].pop("autoattack")
    assert shape([each for each in callbacks if each not in more]) == shape(first)


def shape(value):
    """Nested settings without numbers."""
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items()}
    return [shape(each) for each in value] if isinstance(value, list) else type(value)


class Rough(torch.nn.Sequential):
    """A network that no verifier can bound."""

    def __init__(self):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(784, 10), torch.nn.Softshrink())


@pytest.mark.thorough
def test_weights_of_a_plain_file_that_cannot_be_bounded(tmp_path):
    torch.save(Rough().state_dict(), tmp_path / "net.pth")
    network = [f"--model.classifier={__name__}.Rough", f"--model.weights={tmp_path / 'net.pth'}"]
    settings = ["--model=StandardTraining", *network, "--data=Digits", *FEW]
    with pytest.warns(UserWarning, match=r"^CertifiedEvaluation is left out: .* no bound for network layer '2': got"):
        _, record = run("test", [*settings, f"--config={FOLDER / 'protocol_quick.yaml'}", *FEW], tmp_path / "run")
    assert not any("certified" in name for name in record["metrics"])
    assert "test/accuracy/union" in record["metrics"]
    assert list(record["skipped"]) == ["CertifiedEvaluation"]
    assert "network layer '2' (Softshrink)" in record["skipped"]["CertifiedEvaluation"]
    assert record["training_cost"] is None


class Linear(torch.nn.Sequential):
    """The smallest network that can be bounded."""

    def __init__(self):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(784, 10))


@pytest.fixture
def on_mnist(written, tmp_path):
    """Test arguments of a linear network and the protocol of MNIST, on two of six images in files."""
    torch.manual_seed(0)
    torch.save(Linear().state_dict(), tmp_path / "net.pth")
    network = [f"--model.classifier={__name__}.Linear", f"--model.weights={tmp_path / 'net.pth'}"]
    data = ["--data=MNIST", f"--data.root={written}", "--data.verify_checksums=false", "--data.test_images=2"]
    return ["--model=StandardTraining", *network, *data, f"--config={FOLDER / 'protocol_mnist.yaml'}"]


@pytest.mark.filterwarnings("ignore:data.verify_checksums")
def test_what_is_not_there_is_left_out_of_a_protocol(on_mnist, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    monkeypatch.setenv("ROBUST_DATA", str(tmp_path))
    with pytest.warns(UserWarning, match=r"is left out: ") as warned:
        _, record = run("test", on_mnist, tmp_path / "run")
    reasons = {
        "AdversarialEvaluation.autoattack": "install it: uv sync --extra eval",
        "CorruptedAccuracy": f"cannot read {tmp_path}/mnist_c/shot_noise/test_images.npy (No such file",
        "SampledRobustness": "give that of an autoencoder's training",
    }
    assert record["skipped"].keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in record["skipped"][name]
        assert sum(str(warning.message).startswith(f"{name} is left out: ") for warning in warned) == 1
    assert "test/accuracy/square/l1_10" in record["metrics"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:data.verify_checksums")
def test_what_is_there_is_part_of_a_protocol(on_mnist, written, tmp_path, monkeypatch):
    pytest.importorskip("pyautoattack", reason="needs the extra eval")
    monkeypatch.setattr("datamodules.MNISTC.load", lambda *_: copies(written))
    torch.save(
        {"state_dict": {f"autoencoder.{name}": value for name, value in Autoencoder(code_size=2).state_dict().items()}},
        tmp_path / "autoencoder.ckpt",
    )
    autoencoder = f"--trainer.callbacks.score.sampler.checkpoint={tmp_path / 'autoencoder.ckpt'}"
    _, record = run("test", [*on_mnist, autoencoder], tmp_path / "run")
    assert record["skipped"] == {}
    names = {f"accuracy/autoattack/{ball}" for ball in ("linf_0.3", "l2_2", "l1_10")}
    names |= {"accuracy/group/mean", "accuracy/group/fog", "robustness_score/r4", "robustness_score/r4/normalized"}
    assert {f"test/{name}" for name in names} <= record["metrics"].keys()
    assert_registered(record["metrics"])


def copies(root):
    """MNIST's test images as those of all corruptions."""
    images, labels = MNIST(root=str(root), verify_checksums=False).images("test").raw(torch.arange(6))
    return TensorImages(images.repeat(15, 1, 1, 1), labels.repeat(15), 10)


@pytest.mark.parametrize(
    "evaluation",
    [CertifiedEvaluation(where_possible=True), RobustnessScore(where_possible=True)],
    ids=["certificate", "margin"],
)
def test_networks_with_noise_have_no_certificate_and_no_margin(evaluation):
    class Coin(Plain):
        stochastic = True

    with pytest.warns(UserWarning, match=r"is left out: .*its predictions differ from pass to pass"):
        metrics = measured(Coin(small()), evaluation, test_images=4)
    assert metrics.keys() == {"test/accuracy/clean"}
    assert list(evaluation.skipped) == [type(evaluation).__name__]
    strict = type(evaluation)()
    with pytest.raises(SettingError, match=r"its predictions differ from pass to pass"):
        measured(Coin(small()), strict, test_images=4)


def test_certified_by_any_of_several_methods_is_the_union():
    module = stored()
    by_method = {
        method: measured(module, CertifiedEvaluation(methods=methods, norm="linf", epsilons=[0.02], pgd_steps=0))
        for method, methods in {"both": ["ibp", "crown-ibp"], "tightest": ["tightest"], "ibp": ["ibp"]}.items()
    }
    name = "test/certified_accuracy/linf_0.02"
    both = by_method["both"]
    assert both[f"{name}/ibp"] == by_method["ibp"][name]
    assert max(both[f"{name}/ibp"], both[f"{name}/crown_ibp"]) <= both[name] <= by_method["tightest"][name]
    assert 0 < both[name] < 1


@pytest.mark.parametrize("epsilon", [0.02, 0.01])
def test_certified_in_linf_whatever_the_models_own_balls_and_in_learned_budgets(epsilon):
    """Names have the protocol's size, also where it is the model's own."""
    torch.manual_seed(0)
    learned = ContextualBudgets(DMSmall(), BudgetGenerator(), epsilon=epsilon)
    settings = {"norm": "linf", "epsilons": [0.01], "pgd_steps": 0}
    names = [name for name in measured(learned, CertifiedEvaluation(**settings), test_images=8) if "certified" in name]
    own = "test/certified_accuracy/own_budgets_0.01"
    assert sorted(names) == ["test/certified_accuracy/linf_0.01", own, f"{own}/common_map"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"methods": []}, "CertifiedEvaluation.methods: got []; give each once"),
        ({"methods": ["ibp", "ibp"]}, "CertifiedEvaluation.methods: got ['ibp', 'ibp']; give each once"),
        ({"norm": "linf", "budgets": {"a": None}}, "CertifiedEvaluation.norm: got 'linf'; leave it out: budgets"),
    ],
)
def test_wrong_settings_of_certificates(settings, message):
    with pytest.raises(SettingError) as error:
        CertifiedEvaluation(**settings)
    assert str(error.value).startswith(message)


def test_a_verifier_without_methods_is_named():
    class Own:
        def margins(self, network, box, y):
            return -torch.ones(len(y), 9)

    with pytest.raises(SettingError, match=r"^CertifiedEvaluation.methods: got \['ibp'\]; Own has no setting method"):
        measured(stored(), CertifiedEvaluation(Own(), methods=["ibp"]), test_images=4)


@pytest.mark.parametrize(("samples", "distinct"), [(500, 6), (3, 3), (1, 1)])
def test_margins_are_recorded_of_a_test_of_some_images(samples, distinct):
    """Of even steps through these images, not through all of the data."""
    evaluation = CertifiedEvaluation(norm="linf", epsilons=[0.02], pgd_steps=0, margin_samples=samples)
    measured(stored(), evaluation, test_images=6)
    (quantiles,) = evaluation.recorded.margins.values()
    assert len(quantiles) == 51
    assert (max(quantiles) > min(quantiles)) == (distinct > 1)


def test_balls_are_groups():
    balls = {"linf": 0.05, "l2": 0.5}
    case, own = AttackCase(PGD(2, start="clean")), AttackCase(PGD(3, start="clean"), norm="l2", name="own")
    metrics = measured(stored(), AdversarialEvaluation({"a": case, "b": own}, balls=balls))
    worst = {norm: metrics[f"test/accuracy/worst/{norm}"] for norm in balls}
    assert worst["linf"] == metrics["test/accuracy/a/linf_0.05"]
    assert worst["l2"] <= min(metrics[f"test/accuracy/{name}/l2_0.5"] for name in ("a", "own"))
    assert metrics["test/accuracy/union"] <= min(worst.values())
    with pytest.raises(SettingError, match=r"^AdversarialEvaluation.balls: got \{\}; give a radius"):
        AdversarialEvaluation({"a": case}, balls={})


@pytest.mark.thorough
def test_masking_checks_in_every_norm():
    metrics = measured(stored(), GradientMaskingChecks({"linf": 0.05, "l2": 0.5, "l1": 4.0}, steps=5, restarts=2))
    under = {name for name in metrics if "/masking/accuracy/" in name}
    assert {f"test/masking/accuracy/more_steps/{ball}" for ball in ("linf_0.05", "l2_0.5", "l1_4")} <= under
    assert {"test/masking/accuracy/pgd/l2_28", "test/masking/accuracy/pgd/l1_784"} <= under
    assert {f"test/masking/accuracy/square/{ball}" for ball in ("linf_0.05", "l2_0.5", "l1_4")} <= under
    with pytest.raises(SettingError, match=r"^GradientMaskingChecks.epsilons: got \{\}"):
        GradientMaskingChecks({})
