"""Networks of the zoo are those whose figures their cards state."""

import json
import re

import pytest
import torch

import train
from cli.zoo import add
from datamodules import Digits
from robust import zoo
from robust.attacks import APGD, PGD
from robust.bounds import FeedForwardVerifier, certify
from robust.checkpoints import load_weights
from robust.errors import SettingError
from robust.evaluation import judge_repeatedly
from robust.networks import without_noise
from robust.threat_models import LinfBall
from tests.testers import ROOT, error_of

SHORT = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.logger=false"]
FOLDER = ROOT / "robust" / "zoo"
LEADERBOARD = re.compile(r"/accuracy/(clean|worst/\w+|union|average)$|/certified_accuracy/|/a_rob/|/alpha_[\d.]+$|/r2$")
OF_DIGITS = [name for name in zoo.names() if name.startswith("digits_")]


@pytest.fixture(scope="module")
def digits():
    """Test images (299, 1, 28, 28) and labels."""
    data = Digits(eval_batch_size=299)
    data.prepare_data()
    data.setup("test")
    x, y, *_ = next(iter(data.test_dataloader()))
    return x, y


def stated(name):
    """Figures of the card, by metric."""
    card = (FOLDER / f"{name}.md").read_text()
    return {metric: float(value) for metric, value in re.findall(r"^\| (test/\S+) \| (\S+) \|", card, re.MULTILINE)}


def wrong_by(accuracy, correct):
    """Difference of an accuracy from the fraction of True, in images."""
    return abs(accuracy * len(correct) - int(correct.sum()))


@pytest.mark.thorough_but("digits_contextual_budgets", "digits_weighted_minimax")
@pytest.mark.parametrize("name", OF_DIGITS)
def test_each_network_has_the_figures_of_its_card(name, digits):
    """Within what other instruction sets and the single draws of networks with noise change."""
    x, y = digits
    torch.manual_seed(0)
    network, figures = zoo.load(name), stated(name)
    stochastic = "test/accuracy/clean/noise_off" in figures
    with without_noise(network):
        clean = network(x).argmax(1) == y
        assert wrong_by(figures["test/accuracy/clean/noise_off" if stochastic else "test/accuracy/clean"], clean) <= 1
        if not stochastic:
            x_adv = APGD(steps=20)(network, LinfBall(0.1), x, y)
            attacked = clean & (network(x_adv).argmax(1) == y)
            assert wrong_by(figures["test/accuracy/apgd/linf_0.1"], attacked) <= 9  # other random starts: up to 5
            certified = certify(FeedForwardVerifier("tightest"), network, LinfBall(0.1), x, y).certified
            assert wrong_by(figures["test/certified_accuracy/linf_0.1"], certified) <= 1
            assert (certified <= attacked).all()
    if stochastic:
        x_adv = PGD(steps=20, num_samples=3)(network, LinfBall(0.1), x, y)
        passes, _ = judge_repeatedly(network, x_adv, y, 20)
        right = float(passes.float().mean(0).sum())
        assert abs(figures["test/accuracy/pgd/linf_0.1"] * len(x) - right) <= 9
    assert stochastic == (name == "digits_learn2perturb")


@pytest.mark.filterwarnings("ignore:\\w+ is left out")  # of networks with noise
@pytest.mark.slow
@pytest.mark.parametrize("name", OF_DIGITS)
def test_the_protocol_has_the_figures_of_the_leaderboard(name, tmp_path):
    """The worst attacks, R2, weighted accuracies and certificates, by the command of the page."""
    quiet = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", f"--trainer.default_root_dir={tmp_path}"]
    protocol = "--config=configs/evaluation/protocol_digits.yaml"
    train.main(["test", f"--ckpt_path=zoo:{name}", "--data=Digits", protocol, *quiet])
    metrics = json.loads((tmp_path / "results.json").read_text())["test"]["metrics"]
    figures = {metric: value for metric, value in stated(name).items() if LEADERBOARD.search(metric)}
    assert len(figures) >= 5
    for metric, value in figures.items():
        tolerance = 0.05 if metric == "test/robustness_score/r2" else 6.01 / 299  # other processors, draws of noise
        assert abs(metrics[metric] - value) <= tolerance, metric


@pytest.mark.thorough
def test_the_network_of_mnist_has_the_figures_of_its_card(mnist_root, tmp_path):
    """On all 10,000 test images."""
    settings = ["--ckpt_path=zoo:mnist_contextual_budgets", "--data=MNIST", f"--data.root={mnist_root}"]
    settings += ["--trainer.callbacks={class_path: CertifiedEvaluation, init_args: {pgd_steps: 0}}"]
    train.main(["test", *settings, "--trainer.logger=false", f"--trainer.default_root_dir={tmp_path}"])
    metrics = json.loads((tmp_path / "results.json").read_text())["test"]["metrics"]
    for metric in ("accuracy/clean", "certified_accuracy/own_budgets", "certified_accuracy/own_budgets/common_map"):
        difference = abs(metrics[f"test/{metric}"] - stated("mnist_contextual_budgets")[f"test/{metric}"])
        assert difference * 10_000 <= 3, metric  # by the instructions of the processor


def test_the_zoo_is_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 20e6


def test_each_network_has_a_card():
    assert {path.stem for path in FOLDER.glob("*.md")} == set(zoo.names())


def test_an_evaluation_needs_no_config(tmp_path, monkeypatch):
    """Own budgets are those of the trained generator, whose settings and weights come from the zoo."""
    monkeypatch.chdir(tmp_path)
    evaluation = "{class_path: CertifiedEvaluation, init_args: {norm: linf, epsilons: [0.1]}}"
    quiet = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", f"--trainer.callbacks=[{evaluation}]"]
    train.main(["test", "--ckpt_path=zoo:digits_contextual_budgets", "--data=Digits", *quiet])
    record = json.loads((tmp_path / "results.json").read_text())["test"]
    name = "test/certified_accuracy/own_budgets_0.1"
    assert abs(record["metrics"][name] - stated("digits_contextual_budgets")[name]) * 299 <= 1.01
    assert record["config"]["ckpt_path"] == "zoo:digits_contextual_budgets"


@pytest.mark.thorough_but("digits_learn2perturb")
@pytest.mark.parametrize("name", OF_DIGITS)
def test_the_command_line_evaluates_each(name, tmp_path):
    quiet = ["--trainer.logger=false", "--trainer.callbacks=[]", f"--trainer.default_root_dir={tmp_path}"]
    train.main(["test", f"--ckpt_path=zoo:{name}", "--data=Digits", *quiet])
    metrics = json.loads((tmp_path / "results.json").read_text())["test"]["metrics"]
    assert abs(metrics["test/accuracy/clean"] - stated(name)["test/accuracy/clean"]) * 299 <= 3.01, "draws of noise"


def test_its_test_does_not_write_into_the_folder_of_a_run(tmp_path, monkeypatch, capsys):
    """Regression: ``zoo:NAME`` and URLs were taken as files of the working directory."""
    torch.save(zoo.checkpoint("digits_standard_training"), tmp_path / "of_a_server.ckpt")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results.json").write_text("{}")
    settings = ["--data=Digits", "--trainer.logger=false", "--trainer.callbacks=[]"]
    for path in ("zoo:digits_standard_training", (tmp_path / "of_a_server.ckpt").as_uri()):
        assert "it holds results.json of another run" in error_of(["test", f"--ckpt_path={path}", *settings], capsys)
    assert (tmp_path / "results.json").read_text() == "{}"


def test_its_weights_are_exported_into_the_log_folder(tmp_path):
    """Regression: the files went into a temporary folder, which the command removed at its end."""
    where = ["--data=Digits", f"--trainer.default_root_dir={tmp_path}", "--trainer.logger=false"]
    train.main(["export", "--to=safetensors", "--ckpt_path=zoo:digits_standard_training", *where])
    assert {path.name for path in (tmp_path / "export").iterdir()} == {
        "digits_standard_training.safetensors",
        "digits_standard_training.md",
    }


def test_a_training_starts_from_its_weights_but_does_not_resume(tmp_path, capsys):
    settings = ["fit", "--config=configs/adversarial_training/digits.yaml", f"--trainer.default_root_dir={tmp_path}"]
    error = error_of([*settings, "--ckpt_path=zoo:digits_adversarial_training"], capsys)
    assert error.endswith(
        "the zoo has only weights; give --model.weights zoo:digits_adversarial_training to start from them"
    )
    network = zoo.load("digits_adversarial_training")
    for weight in network.parameters():
        torch.nn.init.zeros_(weight)
    load_weights(network, "zoo:digits_adversarial_training", "weights")
    assert all(
        torch.equal(weight, network.state_dict()[name])
        for name, weight in zoo.load("digits_adversarial_training").state_dict().items()
    )


def test_a_part_of_a_module_is_a_network_too():
    generator = zoo.load_part("digits_contextual_budgets", "generator")
    assert generator(torch.rand(2, 1, 28, 28)).shape == (2, 1, 28, 28)
    assert not generator.training
    with pytest.raises(SettingError, match="part: got 'generator'; digits_adversarial_training has none; it has class"):
        zoo.load_part("digits_adversarial_training", "generator")


def test_an_unknown_name_is_an_error_that_lists_the_names(capsys):
    message = r"name: got 'digits_adverserial'; the zoo has no such network; did you mean digits_adv.*\? It has digits_"
    with pytest.raises(SettingError, match=message):
        zoo.load("digits_adverserial")
    with pytest.raises(SystemExit):
        train.main(["test", "--ckpt_path=zoo:mine", "--data=Digits"])
    assert "ckpt_path: got 'zoo:mine'; the zoo has no such network; it has digits_" in capsys.readouterr().err


@pytest.mark.thorough
def test_a_run_is_added_with_its_card(tmp_path, monkeypatch):
    train.main(["fit", "--config=configs/quickstart.yaml", f"--trainer.default_root_dir={tmp_path / 'run'}", *SHORT])
    add(tmp_path / "run", "mine", tmp_path)
    monkeypatch.setattr(zoo, "_FOLDER", tmp_path)
    assert zoo.names() == ["mine"]
    trained = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    read = zoo.checkpoint("mine")
    assert read["model"] == trained["model"]
    assert read["state_dict"].keys() == trained["state_dict"].keys()
    assert all(torch.equal(weight, trained["state_dict"][name]) for name, weight in read["state_dict"].items())
    assert "| test/accuracy/clean |" in (tmp_path / "mine.md").read_text()


@pytest.mark.thorough
def test_the_card_has_no_test_of_weights_that_trained_on(tmp_path):
    """Regression: tests before and after a resumed training were both those of the last weights."""
    run = tmp_path / "run"
    train.main(["fit", "--config=configs/quickstart.yaml", f"--trainer.default_root_dir={run}", *SHORT])
    records = json.loads((run / "results.json").read_text())
    earlier = records["test"] | {"metrics": {"test/accuracy/clean": 0.123}}
    (run / "results.json").write_text(json.dumps({"test": earlier} | records))
    add(run, "mine", tmp_path)
    assert "12.3" not in (tmp_path / "mine.md").read_text()


def test_the_page_lists_all_networks():
    page = (ROOT / "docs" / "zoo.md").read_text()
    assert sorted(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == zoo.names()
