"""Each config of configs/evaluation behind a method's and its checkpoint, from the command line; several processes."""

import csv
import importlib.util
import json
import re

import pytest
import torch
import yaml

from robust.networks import Autoencoder, BudgetGenerator
from tests import short_autoattack
from tests.testers import ROOT, assert_registered, last_checkpoint, run, several_processes

FOLDER = ROOT / "configs" / "evaluation"
SAMPLER = "--trainer.callbacks.score.init_args.sampler.init_args"
ALIKE = ["multi_norm_cifar10", "multi_norm_tiny_imagenet"]  # but for sizes and steps
SHORT = ["--trainer.callbacks.steps=5", "--trainer.callbacks.restarts=2"]  # of the evaluations of non_uniform_*
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
R4 = [name for name in NAMES if name.startswith("r4_")]
ALIKE += [name for name in R4 if name not in ("r4_digits", "r4_mnist_short")]  # see the test of their settings
QUICKSTART = [f"--config={ROOT / 'configs' / 'quickstart.yaml'}", "--model.generator=null", "--test_after_fit=false"]

pytestmark = pytest.mark.filterwarnings("ignore:epsilon_schedule.length")  # of one epoch of the quickstart


@pytest.fixture(scope="module")
def method(tmp_path_factory):
    """Arguments of ``test``: the quickstart's config after one epoch of natural training, with its checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    run("fit", [*QUICKSTART, "--trainer.max_epochs=1", "--trainer.callbacks=null", "--data.batch_size=16"], folder)
    return [*QUICKSTART[:2], f"--ckpt_path={last_checkpoint(folder)}", "--model.epsilon=0.1"]


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """The same with the quickstart's generator, whose budgets are no ball."""
    folder = tmp_path_factory.mktemp("learned")
    settings = [QUICKSTART[0], QUICKSTART[2]]
    run("fit", [*settings, "--trainer.max_epochs=1", "--trainer.callbacks=null", "--data.batch_size=16"], folder)
    return [QUICKSTART[0], f"--ckpt_path={last_checkpoint(folder)}", "--model.epsilon=0.1"]


@pytest.fixture
def short(monkeypatch):
    """AutoAttack with few steps, where it is installed; its standard ensemble takes minutes."""
    if importlib.util.find_spec("pyautoattack") is not None:
        library = importlib.import_module("pyautoattack")
        monkeypatch.setattr(library, "AutoAttack", short_autoattack.shortened(library, steps=5))


def frozen_autoencoder(name, folder):
    """Arguments that put a small autoencoder in the place of the one that a config of R4 asks for."""
    small = Autoencoder((1, 28, 28), code_size=3, width=2)
    weights = {f"autoencoder.{key}": value for key, value in small.state_dict().items()}
    if name == "sampled_scores_digits":  # several of its scores ask for the checkpoint of this name
        path = folder / "logs/wasserstein_autoencoder/digits/lightning_logs/version_0/checkpoints/last.ckpt"
        path.parent.mkdir(parents=True)
        torch.save({"state_dict": weights}, path)
        return []
    if not name.startswith("r4"):
        return []
    torch.save({"state_dict": weights}, folder / "autoencoder.ckpt")
    return [f"{SAMPLER}.checkpoint={folder / 'autoencoder.ckpt'}", "--trainer.callbacks.epsilons=5"]


def learned_elsewhere(name, folder):
    """Arguments that put an untrained generator in the place of the one that a config asks for, of the data's shape."""
    if not name.startswith("learned_budgets"):
        return []
    weights = {f"generator.{key}": value for key, value in BudgetGenerator().state_dict().items()}
    trained = {"state_dict": weights, "budget_range": {"alpha_low": 0.25, "alpha_high": 2.0}}
    torch.save(trained, folder / "learned.ckpt")
    budgets = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["trainer.callbacks+"][0]["init_args"]["budgets"]
    settings = budgets["learned_elsewhere"]["init_args"]
    settings |= {"checkpoint": str(folder / "learned.ckpt")}
    settings["generator"]["init_args"]["image_shape"] = [1, 28, 28]
    return [f"--trainer.callbacks.budgets={json.dumps(budgets)}"]


def shortened(name, corruptions):
    """Arguments that make an evaluation short."""
    if name == "mnist_c":
        return [f"--data.root={corruptions}", "--data.eval_batch_size=64"]
    if name.startswith("certified_volume"):
        return ["--trainer.callbacks.num_samples=3", "--trainer.callbacks.search.init_args.steps=2"]
    images = 3 if name.startswith(("autoattack", "multi_norm")) else 8  # these are long
    few = ["--trainer.limit_test_batches=1", f"--data.eval_batch_size={images}"]
    return few + SHORT if name.startswith("non_uniform") else few


def assert_figures(name, metrics, callbacks, folder):
    """Check what an evaluation measured."""
    if name.startswith("certified_volume"):
        assert metrics["test/certified_volume/samples"] == 3
        assert metrics["test/certified_accuracy/volume_0.1"] == 0  # so few steps
        assert list((folder / "logs" / name).glob("*.pt"))
    elif name.startswith("learned_budgets"):
        names = [f"test/certified_accuracy/{name}" for name in ("linf_0.1", "learned_elsewhere")]
        assert [metrics[name] for name in names] == [0, 0]
        assert metrics["test/budget/learned_elsewhere/log_volume_error"] < 1e-5
    elif name == "r2":
        assert 0 < metrics["test/robustness_score/r2"] <= 28
    elif name.startswith("r4"):
        assert 0 < metrics["test/robustness_score/r4/normalized"] <= 1
    elif name == "sampled_scores_digits":
        scores = {
            each: metrics[f"test/robustness_score/{each}/normalized"] for each in ("r1", "r3", "r3_same_label", "r4")
        }
        assert all(0 <= score <= 1 for score in scores.values())
        assert scores["r3_same_label"] >= scores["r3"], "fewer neighbours can disagree"
    elif name == "mnist_c":
        assert metrics["test/accuracy/group/mean"] == pytest.approx(metrics["test/accuracy/clean"])
    elif name.startswith("non_uniform"):
        (a_tr,) = (value for name, value in metrics.items() if re.search(r"/a_tr/[^/]+/alpha_2$", name))
        (a_rob,) = (value for name, value in metrics.items() if "/a_rob/" in name)
        assert a_tr <= a_rob <= metrics["test/accuracy/clean"]
    elif name.startswith("accuracy_curve"):
        curve = [value for key, value in metrics.items() if key.startswith("test/accuracy_curve/pgd_7/")]
        assert len(curve) == 7
        assert max(curve) == metrics["test/accuracy_curve/pgd_7/linf_0"]
        assert (folder / "accuracy_curve.png").exists()
    else:
        (cases,) = (each["init_args"]["attacks"] for each in callbacks if "Adversarial" in each["class_path"])
        union, clean = metrics["test/accuracy/union"], metrics["test/accuracy/clean"]
        for case, settings in cases.items():
            attack = f"test/accuracy/{settings.get('name') or case}/"
            assert all(union <= value <= clean for name, value in metrics.items() if name.startswith(attack))


@pytest.mark.thorough_but("digits")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in ALIKE else name
        for name in NAMES
        if not name.startswith("protocol_") and name != "cifar10_c"  # tests/test_protocols.py, and below
    ],
)
def test_runs_behind_a_method(name, method, tmp_path, monkeypatch, written, short):
    if name.startswith("autoattack") and importlib.util.find_spec("pyautoattack") is None:
        pytest.skip("the extra eval is not installed")
    monkeypatch.chdir(tmp_path)  # AutoAttack's states are in logs/
    few = shortened(name, written) + frozen_autoencoder(name, tmp_path) + learned_elsewhere(name, tmp_path)
    _, record = run("test", [*method, f"--config={FOLDER / name}.yaml", *few], tmp_path)
    metrics, callbacks = record["metrics"], record["config"]["trainer"]["callbacks"]
    assert_registered(metrics)
    assert "test/certified_accuracy/linf_0.1" in metrics, "the method's own callbacks still run"
    assert any("CertifiedEvaluation" in callback["class_path"] for callback in callbacks)
    assert "Unable to serialize" not in str(callbacks), "the record can be run again"
    assert_figures(name, metrics, callbacks, tmp_path)


def test_the_configs_of_r4_differ_in_the_autoencoder_alone():
    """So those that the default run leaves out run as the others do."""
    settings = {name: yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) for name in R4}
    for name, each in settings.items():
        (callback,) = each["trainer.callbacks+"]
        training = name.removeprefix("r4_")
        path = callback["init_args"]["score"]["init_args"]["sampler"]["init_args"].pop("checkpoint")
        assert path == f"logs/wasserstein_autoencoder/{training}/lightning_logs/version_0/checkpoints/last.ckpt"
        assert (ROOT / "configs" / "wasserstein_autoencoder" / f"{training}.yaml").exists()
        assert callback["init_args"].pop("max_test_batches", None) == (2 if name.endswith("_short") else None)
    assert all(each == settings["r4_digits"] for each in settings.values())


@pytest.mark.filterwarnings("ignore:ckpt_path. got None")  # untrained weights are enough
def test_cifar10_c_runs_behind_a_network_of_coloured_images(tmp_path, written):
    network = ["--model=StandardTraining", "--model.classifier=DMSmall", "--model.classifier.image_shape=[3, 32, 32]"]
    files = [f"--config={FOLDER / 'cifar10_c.yaml'}", f"--data.root={written}", "--data.eval_batch_size=64"]
    _, record = run("test", [*network, *files], tmp_path)
    metrics = record["metrics"]
    assert_registered(metrics)
    assert len([name for name in metrics if "/group/" in name]) == 75 + 1
    assert metrics["test/accuracy/group/mean"] == pytest.approx(metrics["test/accuracy/clean"])


@pytest.mark.thorough
@pytest.mark.parametrize("name", [name for name in NAMES if "linf" in name])
def test_a_config_that_names_a_norm_attacks_in_its_ball_behind_learned_budgets(
    name, learned, tmp_path, monkeypatch, short
):
    if name.startswith("autoattack") and importlib.util.find_spec("pyautoattack") is None:
        pytest.skip("the extra eval is not installed")
    monkeypatch.chdir(tmp_path)  # AutoAttack's states are in logs/
    few = ["--trainer.limit_test_batches=1", "--data.eval_batch_size=3"]
    _, record = run("test", [*learned, f"--config={FOLDER / name}.yaml", *few], tmp_path)
    case = name.split("_")[0]
    (attacked,) = (value for name, value in record["metrics"].items() if name.startswith(f"test/accuracy/{case}/"))
    assert attacked <= record["metrics"]["test/accuracy/clean"]
    assert {"test/certified_accuracy/own_budgets", "test/certified_accuracy/linf_0.1"} <= record["metrics"].keys()


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:ckpt_path. got None")  # untrained weights are enough
@pytest.mark.parametrize("name", ["autoattack_linf", "autoattack_rand_linf"])
def test_a_model_without_a_ball_of_that_norm_needs_its_radius(name, tmp_path, monkeypatch, capsys, short):
    if importlib.util.find_spec("pyautoattack") is None:
        pytest.skip("the extra eval is not installed")
    monkeypatch.chdir(tmp_path)
    other = [f"--config={ROOT / 'configs' / 'adversarial_training' / 'digits.yaml'}", "--model.norm=l2"]
    settings = [*other, "--trainer.callbacks=[]", f"--config={FOLDER / name}.yaml"]
    with pytest.raises(SystemExit):
        run("test", settings, tmp_path)
    message = "error: AdversarialEvaluation.attacks.autoattack.epsilon: got None; give a radius: none of the model's"
    assert message in capsys.readouterr().err
    few = ["--trainer.limit_test_batches=1", "--data.eval_batch_size=3"]
    _, record = run("test", [*settings, "--trainer.callbacks.attacks.autoattack.epsilon=0.1", *few], tmp_path)
    assert "test/accuracy/autoattack/linf_0.1" in record["metrics"]


@pytest.mark.thorough
def test_several_add_up_and_the_page_shows_what_runs(method, tmp_path):
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "evaluation.md").read_text(), re.DOTALL)
    (tmp_path / "page.yaml").write_text(block)
    both = [f"--config={FOLDER / 'non_uniform_cifar10.yaml'}", *SHORT, f"--config={tmp_path / 'page.yaml'}"]
    few = ["--trainer.limit_test_batches=1", "--data.eval_batch_size=4"]
    _, record = run("test", [*method, *both, *few], tmp_path)
    names = {"test/accuracy/a_rob/linf_0.031", "test/accuracy/pgd/linf_0.1", "test/accuracy/apgd/l1_7.84"}
    assert names <= record["metrics"].keys()
    assert record["metrics"]["test/attacked_samples"] == record["metrics"]["test/weighted_accuracy/samples"] == 4


@pytest.mark.thorough_but("r2")
@pytest.mark.parametrize("name", ["pgd_linf_mnist", "r2"])
def test_two_whose_figures_have_the_same_names_are_an_error(name, method, tmp_path, capsys):
    again = [f"--config={FOLDER / name}.yaml"] * 2
    with pytest.raises(SystemExit):
        run("test", [*method, *again], tmp_path)
    kind = {"r2": "RobustnessScore"}.get(name, "AdversarialEvaluation")
    assert f"error: trainer.callbacks: got '2 x {kind}'; their metrics have the same" in capsys.readouterr().err


@pytest.mark.thorough_but("null-False")
@pytest.mark.parametrize(("sizes", "fits"), [("[0.05]", True), ("[0.05, 0.1]", False), ("null", False)])
def test_certified_evaluations_of_other_sizes_add_up(sizes, fits, method, tmp_path, capsys):
    second = ["--trainer.callbacks+=CertifiedEvaluation", f"--trainer.callbacks.epsilons={sizes}"]
    few = ["--trainer.limit_test_batches=1", "--data.eval_batch_size=4"]
    if fits:
        _, record = run("test", [*method, *second, *few], tmp_path)
        names = {"test/certified_accuracy/linf_0.1", "test/certified_accuracy/linf_0.05"}
        assert names <= record["metrics"].keys()
    else:  # the method's own is of 0.1
        with pytest.raises(SystemExit):
            run("test", [*method, *second, *few], tmp_path)
        assert "got '2 x CertifiedEvaluation'" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:ckpt_path. got None")
def test_what_is_no_classifier_is_not_evaluated(tmp_path, capsys):
    autoencoder = f"--config={ROOT / 'configs' / 'wasserstein_autoencoder' / 'digits.yaml'}"
    with pytest.raises(SystemExit):
        run("test", [autoencoder, f"--config={FOLDER / 'r2.yaml'}"], tmp_path)
    assert "error: model: got 'WassersteinAutoencoder'; it is not a classifier" in capsys.readouterr().err


def test_every_config_is_on_the_page():
    page = (ROOT / "docs" / "evaluation.md").read_text()
    assert [name for name in NAMES if f"configs/evaluation/{name}.yaml)" not in page] == []


def test_an_empty_list_before_it_leaves_out_the_methods_callbacks(method, tmp_path):
    alone = ["--trainer.callbacks=[]", f"--config={FOLDER / 'non_uniform_cifar10.yaml'}", *SHORT]
    few = ["--trainer.limit_test_batches=1", "--data.eval_batch_size=8"]
    _, record = run("test", [*method, *alone, *few], tmp_path)
    assert "test/accuracy/a_rob/linf_0.031" in record["metrics"]
    assert "test/certified_accuracy/linf_0.1" not in record["metrics"]


def every_evaluation():
    """Callbacks that measure with few steps and without draws."""

    def pgd(kind, epsilon):
        return {
            "attack": {"class_path": "robust.attacks.PGD", "init_args": {"steps": 2, "start": "clean"}},
            "threat_model": {"class_path": f"robust.threat_models.{kind}", "init_args": {"epsilon": epsilon}},
        }

    adversarial = {"attacks": {"a": pgd("LinfBall", 0.05) | {"group": "linf"}, "b": pgd("L2Ball", 1.0)}}
    weighted = {"steps": 1, "step_size": 1e-7, "epsilon": 1e-7, "restarts": 2, "alphas": [1.0, 2.0]}
    sampler = {"class_path": "robust.scores.OnManifold", "init_args": {"num_samples": 3}}
    sampler["init_args"]["autoencoder"] = {"class_path": "robust.networks.Autoencoder", "init_args": {"width": 1}}
    r4 = {"class_path": "robust.scores.R4", "init_args": {"sampler": sampler}}
    search = {"class_path": "robust.bounds.LargestCertifiedBox", "init_args": {"steps": 6, "learning_rate": 0.03}}
    volume = {"search": search, "num_samples": 13, "batch_size": 4, "epsilons": [0.01], "state_folder": None}
    return [
        {"class_path": "AdversarialEvaluation", "init_args": adversarial},
        {"class_path": "WeightedMinimaxEvaluation", "init_args": weighted},
        {
            "class_path": "GradientMaskingChecks",
            "init_args": {"steps": 1, "queries": 1, "max_batches": 10, "tolerance": 0.9},
        },
        {"class_path": "RobustnessScore", "init_args": {"attacks": {"bg": "robust.attacks.LinearizedBoundary"}}},
        {"class_path": "SampledRobustness", "init_args": {"score": r4, "epsilons": 10}},
        {"class_path": "CertifiedVolume", "init_args": volume},
    ]


@pytest.mark.thorough
@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_give_the_figures_of_one(count, method, tmp_path):
    (tmp_path / "evaluation.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": every_evaluation()}}))
    settings = [*method, f"--config={tmp_path / 'evaluation.yaml'}", "--data=tests.few_digits.FewDigits"]
    settings.append("--data.eval_batch_size=24")
    _, one = run("test", settings, tmp_path / "one")
    _, several = several_processes(count, "test", settings, tmp_path / "several")
    assert one["samples"]["test"] % count != 0
    assert one["metrics"].keys() == several["metrics"].keys()
    # the last digits of a prediction depend on the batch, and with them where a margin ends
    loose = [name for name in one["metrics"] if name.startswith(("test/masking/", "test/robustness_score/r2"))]
    exact = {name: value for name, value in one["metrics"].items() if name not in loose}
    exact |= {name: one["metrics"][name] for name in ("test/masking/accuracy/clean", "test/masking/samples")}
    assert {name: several["metrics"][name] for name in exact} == pytest.approx(exact, rel=1e-6)
    assert (
        exact["test/attacked_samples"] == exact["test/weighted_accuracy/samples"] == exact["test/masking/samples"] == 31
    )
    assert 0 < exact["test/accuracy/union"] < exact["test/accuracy/worst/linf"] < exact["test/accuracy/clean"] < 1
    weighted = "test/weighted_accuracy/a_sa/linf_1e-07"
    assert exact[f"{weighted}/alpha_2"] < exact[f"{weighted}/alpha_1"] < exact["test/accuracy/clean"]
    assert {name: several["metrics"][name] for name in loose if "/r2" in name} == pytest.approx(
        {name: one["metrics"][name] for name in loose if "/r2" in name}, rel=1e-3
    )
    margins = [
        list(csv.reader((tmp_path / run / "robustness_score" / "test_margins.csv").read_text().splitlines()))
        for run in ("one", "several")
    ]
    assert [row[:3] for row in margins[0]] == [row[:3] for row in margins[1]]
    assert [row[0] for row in margins[1][1:]] == [str(index) for index in range(31)]
    records = [
        torch.load(tmp_path / run / "robustness_score" / "test_r4.pt", weights_only=True) for run in ("one", "several")
    ]
    torch.testing.assert_close(records[0], records[1], rtol=1e-4, atol=1e-6)
