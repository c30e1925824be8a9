"""Own images from the folder to the predictions, on the command line."""

import csv

import pytest
import torch

import train
from callbacks import DecisionBoundary, Predictions
from callbacks.pictures.base import class_name
from callbacks.pictures.budget_images import draw_budgets
from datamodules import Digits
from lightning_modules import MSD
from robust.bounds import FeedForwardVerifier, certify
from robust.errors import SettingError
from robust.threat_models import L1Ball, L2Ball, LinfBall
from tests.callbacks.trained import stored, trainer_with
from tests.datamodules.pictures import save, write_classes
from tests.datamodules.test_loaders import Recorder
from tests.testers import DDP, QUIET, assert_ends_equal, error_of, last_checkpoint, results_in
from tests.two_processes import run_together

COUNTS = {"ä rot": 12, "grün": 9, "blau": 9}
CERTIFY = "--trainer.callbacks+={class_path: Predictions, init_args: {epsilons: [0.1, 1.0e-6, 1.0e-5]}}"
MODEL = """
seed_everything: 0
model:
  class_path: ContextualBudgets
  init_args:
    epsilon: 0.01
    classifier: {class_path: robust.networks.DMSmall}
    generator: {class_path: robust.networks.BudgetGenerator}
    optimizer: {class_path: torch.optim.Adam, init_args: {lr: 0.002}}
    generator_optimizer: {class_path: torch.optim.Adam, init_args: {lr: 0.002}}
epsilon_schedule: {start_epoch: 1, length: 1}
trainer: {max_epochs: 2, log_every_n_steps: 1, enable_model_summary: false}
"""


def settings(folder, *more):
    (folder / "model.yaml").write_text(MODEL)
    root = folder / "bilder"
    if not root.exists():
        write_classes(root, COUNTS)
    own = ["--config", str(folder / "model.yaml"), "--data=ImageFolder", f"--data.root={root}", "--data.image_size=10"]
    return [*own, "--data.batch_size=6", "--data.eval_batch_size=4", *more]


def run(command, folder, *more):
    log = folder / "log"
    train.main([command, *settings(folder, *more), *QUIET, f"--trainer.default_root_dir={log}"])
    return log


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    pictures = ["--trainer.callbacks+=BudgetImages", "--test_after_fit=true"]
    run("fit", folder, *pictures)
    for index in range(3):
        save(folder / "neu" / f"ß {index}.png", torch.full((6, 8), 40 * index, dtype=torch.uint8).numpy())
    return folder


def rows_in(log):
    with (log / "predictions.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_networks_and_records_have_the_classes_of_the_data(trained):
    record = results_in(trained / "log" / "results.json")
    assert record["class_names"] == ["blau", "grün", "ä rot"]
    model = record["config"]["model"]["init_args"]
    assert model["classifier"]["init_args"]["num_classes"] == 3
    assert model["generator"]["init_args"]["image_shape"] == [3, 10, 10]
    checkpoint = torch.load(last_checkpoint(trained / "log"), weights_only=True)
    assert checkpoint["ImageFolder"]["class_names"] == record["class_names"]
    assert (trained / "log" / "budgets" / "test_own_budgets.png").exists()


def test_predictions_of_images_without_labels(trained):
    given = [f"--data.predict_from={trained / 'neu'}", f"--ckpt_path={last_checkpoint(trained / 'log')}", CERTIFY]
    rows = rows_in(run("predict", trained, *given))
    assert [(row["sample"], row["label"], row["file"]) for row in rows] == [
        (f"{i}", "", f"ß {i}.png") for i in range(3)
    ]
    names = ["blau", "grün", "ä rot"]
    for row in rows:
        probabilities = [float(row[f"probability/{name}"]) for name in names]
        assert sum(probabilities) == pytest.approx(1, abs=1e-4)
        assert row["class"] == names[int(row["prediction"])] == names[probabilities.index(max(probabilities))]
        assert row["certified_epsilon/linf"] in ("0", "1e-06", "1e-05")
    assert any(row["certified_epsilon/own_budgets"] != "0" for row in rows)


@pytest.mark.parametrize("classes", [7, 10], ids=["another value", "the default"])
def test_a_given_number_of_classes_is_kept_and_refused(classes, trained, tmp_path, capsys):
    given = settings(trained, f"--model.classifier.num_classes={classes}")
    error = error_of(["fit", *given, *QUIET, f"--trainer.default_root_dir={tmp_path}"], capsys)
    assert f"output ({classes},)'; the data has 3 classes" in error


def test_other_classes_than_the_checkpoint_are_refused(trained, tmp_path, capsys):
    write_classes(tmp_path, {"blau": 3, "gelb": 3, "rot": 3})
    given = [f"--data.root={tmp_path}", f"--ckpt_path={last_checkpoint(trained / 'log')}"]
    given += [f"--trainer.default_root_dir={tmp_path / 'log'}", "--data.test_fraction=0.4"]
    error = error_of(["test", *settings(trained, *given), *QUIET], capsys)
    assert error.startswith(
        "data.class_names: got ['blau', 'gelb', 'rot']; the checkpoint was trained with the classes"
    )


def test_a_damaged_file_ends_the_run_in_one_line(tmp_path, capsys):
    arguments = settings(tmp_path, "--data.in_memory=false", f"--trainer.default_root_dir={tmp_path / 'log'}")
    for path in (tmp_path / "bilder" / "blau").iterdir():
        path.write_bytes(b"damaged")
    error = error_of(["fit", *arguments, *QUIET], capsys)
    assert error.startswith(f"data.root: got '{tmp_path / 'bilder' / 'blau' / 'blau '}")


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:the last validation was at step")
def test_a_run_from_disk_with_workers_resumes_bit_for_bit(trained, tmp_path):
    """And ends like the run in memory."""
    every = ["--checkpoint.every_n_train_steps=1", "--checkpoint.save_top_k=-1", "--checkpoint.filename={step}"]
    outcomes = []
    for name, more in (
        ("whole", []),
        ("stopped", ["--data.in_memory=false", "--trainer.max_steps=4", *every]),
        ("resumed", ["--data.in_memory=false", "--data.num_workers=2", "--seed_everything=5"]),
    ):
        if name == "resumed":
            more.append(f"--ckpt_path={tmp_path / 'stopped' / 'checkpoints' / 'step=4.ckpt'}")
        root = f"--trainer.default_root_dir={tmp_path / name}"
        train.main(["fit", *settings(trained, *more), *QUIET, root])
        outcomes.append(torch.load(last_checkpoint(tmp_path / name), weights_only=True))
    assert_ends_equal(outcomes[2], outcomes[0])


@pytest.mark.slow
def test_two_processes_write_each_prediction_once(trained, tmp_path):
    """Into one file, which is that of one process."""
    given = [f"--ckpt_path={last_checkpoint(trained / 'log')}", CERTIFY]
    train.main(["predict", *settings(trained, *given), *QUIET, f"--trainer.default_root_dir={tmp_path / 'one'}"])
    both = ["--trainer.devices=2", DDP, f"--trainer.default_root_dir={tmp_path / 'two'}"]
    run_together(["predict", *settings(trained, *given), *QUIET, *both], 2)
    one, two = rows_in(tmp_path / "one"), rows_in(tmp_path / "two")
    assert [row["file"] for row in one] == [row["file"] for row in two]
    assert [row["certified_epsilon/own_budgets"] for row in one] == [
        row["certified_epsilon/own_budgets"] for row in two
    ]
    assert list(tmp_path.rglob("predictions*.csv")) == [tmp_path / name / "predictions.csv" for name in ("one", "two")]


def test_pictures_name_the_classes(tmp_path):
    module, data = stored(), Digits()
    assert class_name(module, 3) == "class 3"
    data.class_names = tuple("abcdefghij")
    trainer_with(DecisionBoundary(count=2, points=3), default_root_dir=tmp_path).test(module, data, verbose=False)
    assert class_name(module, 3) == "d"
    x, y = data.images("test")[[0, 1]]
    figure = DecisionBoundary(count=2, points=3).figure(module, x, y)
    assert [axis.get_title() for axis in figure.axes] == [data.class_names[label] for label in y.tolist()]
    figure = draw_budgets(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8), names=["a", "b"])
    assert [axis.get_title() for axis in figure.axes[:2]] == ["a", "b"]


class TestPredictions:
    def test_data_with_labels_and_without_names(self, tmp_path):
        """The certified size is the largest one whose box the verifier certifies."""
        module = stored()
        own, certifying = Predictions(), Predictions(epsilons=[0.01, 1.0, 0.001])
        trainer_with(own, certifying, default_root_dir=tmp_path).predict(module, datamodule=Digits())
        rows = rows_in(tmp_path)
        assert list(rows[0])[:4] == ["sample", "label", "prediction", "probability/0"]
        assert len(rows) == 299
        x = Digits().images("test")[torch.arange(299)].images
        y = torch.tensor([int(row["prediction"]) for row in rows])
        certified = certify(FeedForwardVerifier(), module.classifier, LinfBall(0.01), x, y).certified
        assert [row["certified_epsilon/linf"] == "0.01" for row in rows] == certified.tolist()
        assert 0 < certified.sum() < 299

    def test_each_norm_has_the_size_that_was_certified(self, tmp_path):
        """Regression: the size in linf stood for those of the other norms, which are in proportion to it."""
        module = MSD(stored().classifier, epsilon=0.1, epsilon_l2=0.02, epsilon_l1=0.05)
        trainer_with(Predictions(epsilons=[0.2]), default_root_dir=tmp_path).predict(module, datamodule=Digits())
        rows = rows_in(tmp_path)
        x = Digits().images("test")[torch.arange(299)].images
        y = torch.tensor([int(row["prediction"]) for row in rows])
        for ball in (L2Ball(0.04), L1Ball(0.1)):
            certified = certify(FeedForwardVerifier(), module.classifier, ball, x, y).certified
            assert certified.any()
            sizes = torch.tensor([float(row[f"certified_epsilon/{ball.norm}"]) for row in rows])
            assert torch.equal(sizes > 0, certified)
            assert sizes[certified].tolist() == pytest.approx([ball.epsilon] * int(certified.sum()))

    def test_balls_of_one_norm_have_a_column_each(self, tmp_path):
        module = stored()
        module.threat_models = lambda x, epsilon: {"small": LinfBall(epsilon / 10), "large": LinfBall(epsilon)}
        trainer_with(Predictions(epsilons=[0.01]), default_root_dir=tmp_path).predict(module, datamodule=Digits())
        rows = rows_in(tmp_path)
        counts = [
            sum(row[f"certified_epsilon/{name}"] == size for row in rows)
            for name, size in (("small", "0.001"), ("large", "0.01"))
        ]
        assert counts[0] > counts[1] > 0

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"epsilons": []}, r"^Predictions\.epsilons: got \[\]; give at least one"),
            ({"epsilons": [0.1, 2.0]}, r"^Predictions\.epsilons: got 2\.0; give sizes in \(0, 1\]"),
        ],
    )
    def test_wrong_sizes(self, wrong, message):
        with pytest.raises(SettingError, match=message):
            Predictions(**wrong)

    @pytest.mark.filterwarnings("ignore:model.classifier. its outputs sum to 1")
    def test_a_network_that_cannot_be_bounded(self, tmp_path):
        module = stored()
        module.classifier.append(torch.nn.Softmax(1))
        with pytest.raises(
            SettingError, match=r"^verifier: got 'auto'; Small: FeedForwardVerifier has .* layer '4': got 'Softmax"
        ):
            trainer_with(Predictions(epsilons=[0.1]), default_root_dir=tmp_path).predict(module, datamodule=Digits())

    def test_two_that_certify_and_a_model_that_is_no_classifier(self, tmp_path):
        one, other = Predictions(epsilons=[0.1]), Predictions(verifier=FeedForwardVerifier())
        with pytest.raises(SettingError, match=r"^trainer\.callbacks: got '2 x Predictions'; give one with verifier"):
            trainer_with(one, other, default_root_dir=tmp_path).predict(stored(), datamodule=Digits())
        with pytest.raises(SettingError, match=r"^model: got 'Recorder'; it is not a classifier; leave out"):
            trainer_with(one, default_root_dir=tmp_path).predict(Recorder(), datamodule=Digits())

    def test_weights_of_half_precision_are_not_certified(self, tmp_path):
        trainer = trainer_with(Predictions(epsilons=[0.1]), default_root_dir=tmp_path, precision="bf16-true")
        with pytest.raises(SettingError, match=r"^trainer\.precision: got 'bf16-true'; Predictions"):
            trainer.predict(stored(), datamodule=Digits())
