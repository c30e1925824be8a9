"""What TensorBoard shows of a run, read from its event files."""

import csv
import json
import re

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2
from torch import nn

import train
from callbacks import AdversarialExamples
from callbacks.pictures.adversarial_examples import draw_examples
from callbacks.pictures.budget_images import draw_budgets
from lightning_modules import AdversarialTraining
from robust.errors import SettingError
from robust.progress import unwatch, watch
from robust.threat_models import LinfBall
from tests.callbacks.trained import images, stored
from tests.small_run import SMALL
from tests.testers import DDP, QUIET, ROOT, assert_registered, last_checkpoint
from tests.two_processes import run_together

LOUD = [setting for setting in QUIET if "logger" not in setting]


def events(folder):
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()


def text(log, tag):
    (event,) = log.Tensors(f"run/{tag}/text_summary")
    return event.tensor_proto.string_val[0].decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The log folder of a training of four epochs with a test."""
    root = tmp_path_factory.mktemp("run")
    settings = ["--test_after_fit=true", "--trainer.log_every_n_steps=2", "--trainer.limit_test_batches=1"]
    train.main(["fit", *SMALL, *LOUD, *settings, f"--trainer.default_root_dir={root}"])
    return root / "lightning_logs" / "version_0"


@pytest.fixture(scope="module")
def log(folder):
    """The run's events."""
    return events(folder)


def test_text_has_the_command_the_settings_and_the_metrics(log):
    assert "python train.py" in text(log, "command")
    assert "| `accuracy/clean` | fraction | ↑ |" in text(log, "metrics")
    settings = yaml.safe_load("\n".join(line[4:] for line in text(log, "settings").splitlines()))
    assert settings["data"]["init_args"]["batch_size"] == 8


def test_scalars_have_registered_names(log):
    assert_registered(set(log.Tags()["scalars"]) - {"epoch"})


def test_rates_and_throughput_are_logged_with_the_loss(log):
    steps = [event.step for event in log.Scalars("train/loss")]
    rates = log.Scalars("train/learning_rate")
    assert [event.step for event in rates] == steps == [1, 3, 5, 7, 9, 11]
    first = rates[0].value
    assert [event.value for event in rates] == pytest.approx([first * 0.5 ** (step // 3) for step in steps])
    speeds = [event.value for event in log.Scalars("train/images_per_second")]
    assert len(speeds) == 6
    assert all(1 < speed < 1e6 for speed in speeds)


def test_the_first_view_of_the_layout_is_loss_accuracies_and_epsilon(log):
    (event,) = log.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    first = layout.category[0]
    assert [chart.title for chart in first.chart] == [
        "loss (lower is better)",
        "clean, attacked and certified accuracy (fraction, higher is better)",
        "epsilon (pixel units)",
    ]


def test_hparams_have_the_settings_and_the_final_metrics(folder):
    log = events(folder / "hparams")
    content = log.PluginTagToContent("hparams")
    assert "_hparams_/experiment" not in content  # it would fix the columns of all runs
    data = plugin_data_pb2.HParamsPluginData.FromString(content["_hparams_/session_start_info"])
    settings = data.session_start_info.hparams
    assert settings["model"].string_value == "AdversarialTraining"
    assert settings["model.epsilon"].number_value == pytest.approx(0.1)
    assert settings["model.lr_scheduler.gamma"].number_value == 0.5
    assert "val/accuracy/clean" in log.Tags()["scalars"]
    (tested,) = log.Scalars("test/accuracy/clean")
    record = json.loads((folder / "results.json").read_text())["test"]["metrics"]
    assert tested.value == pytest.approx(record["test/accuracy/clean"])
    assert not any(tag.startswith("train/") for tag in log.Tags()["scalars"])


def test_hparams_have_the_trainings_seed_and_metrics_of_the_last_weights(tmp_path):
    """Regression: a test of a checkpoint had its command's seed, and a training its last validation's old metrics."""
    folder = f"--trainer.default_root_dir={tmp_path}"
    many = ["--seed_everything=3", "--trainer.max_epochs=3", "--trainer.check_val_every_n_epoch=2"]
    with pytest.warns(UserWarning, match="its metrics are not those of the last weights"):
        train.main(["fit", *SMALL, *LOUD, *many, folder])
    checkpoint = tmp_path / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt"
    train.main(["test", *SMALL, *LOUD, folder, f"--ckpt_path={checkpoint}"])
    for version in (0, 1):
        log = events(tmp_path / "lightning_logs" / f"version_{version}" / "hparams")
        content = log.PluginTagToContent("hparams")["_hparams_/session_start_info"]
        started = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
        assert started.hparams["seed"].number_value == 3
        assert any(tag.startswith("test/") for tag in log.Tags()["scalars"]) == (version == 1)
        assert "val/accuracy/clean" not in log.Tags()["scalars"]


def test_adversarial_examples_are_drawn_after_the_last_epoch_and_in_the_test(log, folder):
    assert set(log.Tags()["images"]) == {f"{stage}/adversarial_examples/linf_0.1" for stage in ("val", "test")}
    assert {path.name for path in (folder / "adversarial_examples").iterdir()} == {
        "val_linf_0.1.png",
        "test_linf_0.1.png",
    }


def test_the_pages_blocks_work(tmp_path):
    page = (ROOT / "docs" / "tensorboard.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "mine.yaml").write_text(block.replace("count: 16, every_n_epochs: 5", "count: 3, every_n_epochs: 1"))
    settings = [
        f"--config={tmp_path / 'mine.yaml'}",
        "--trainer.max_epochs=2",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    train.main(["fit", *SMALL, *LOUD, *settings])
    log = events(tmp_path / "lightning_logs" / "version_0")
    pictures = log.Images("val/adversarial_examples/linf_0.1")
    assert len(pictures) == 2
    assert {picture.width for picture in pictures} == {117}  # of three images, not eight, at 30 dpi

    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {}
    exec(compile(block, "tensorboard.md", "exec"), names)
    (x, y), module, fractions = images(), stored(), []
    watch(fractions.append)
    x_adv = names["random_search"](module, LinfBall(0.1), x[:4], y[:4])
    unwatch()
    assert LinfBall(0.1).contains(x_adv, x[:4]).all()
    assert len(fractions) == 1000


def test_a_resumed_run_continues_the_steps(folder, tmp_path):
    settings = ["--trainer.max_epochs=5", "--trainer.log_every_n_steps=1", f"--ckpt_path={last_checkpoint(folder)}"]
    train.main(["fit", *SMALL, *LOUD, *settings, f"--trainer.default_root_dir={tmp_path}"])
    log = events(tmp_path / "lightning_logs" / "version_0")
    assert [event.step for event in log.Scalars("train/learning_rate")] == [12, 13, 14]


def test_other_loggers_get_rates_and_throughput_and_need_no_tensorboard(tmp_path):
    logger = f"--trainer.logger={{class_path: CSVLogger, init_args: {{save_dir: {tmp_path}}}}}"
    settings = ["--trainer.max_epochs=1", "--trainer.log_every_n_steps=1"]
    train.main(["fit", *SMALL, *LOUD, *settings, logger, f"--trainer.default_root_dir={tmp_path}"])
    (path,) = tmp_path.rglob("metrics.csv")
    rows = list(csv.DictReader(path.open()))
    assert len([row for row in rows if row["train/images_per_second"]]) == 3
    assert not list(tmp_path.rglob("*tfevents*"))
    assert not list(tmp_path.rglob("adversarial_examples"))


@pytest.mark.parametrize(
    ("method", "rates"),
    [
        ("wasserstein_autoencoder", {"train/learning_rate"}),
        ("contextual_budgets", {"train/learning_rate", "train/learning_rate_2"}),
    ],
)
def test_each_optimizer_has_a_rate(method, rates, tmp_path):
    config = SMALL[0].replace("adversarial_training", method)
    few = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"]
    few += ["--trainer.log_every_n_steps=1", "--trainer.callbacks=[]", "--checkpoint.monitor=null"]
    train.main(["fit", config, *LOUD, *few, "--test_after_fit=false", f"--trainer.default_root_dir={tmp_path}"])
    log = events(tmp_path / "lightning_logs" / "version_0")
    assert {tag for tag in log.Tags()["scalars"] if "learning_rate" in tag} == rates


def test_a_network_without_gradients_is_not_drawn():
    class Rounding(nn.Module):
        def forward(self, x):
            return x.round().flatten(1)[:, 300:310]

    x, y = images()
    module = AdversarialTraining(Rounding(), epsilon=0.1).eval()
    picture = AdversarialExamples()
    with pytest.warns(UserWarning, match="^AdversarialExamples draws nothing: ") as warned:
        assert [picture.draw(module, x[:8], y[:8]) for _ in range(2)] == [{}, {}]
    assert len(warned) == 1


def test_titles_are_predictions_and_random_numbers_stay_the_same():
    (x, y), module = images(), stored()
    state = torch.get_rng_state()
    (figure,) = AdversarialExamples(count=8).draw(module, x[:8], y[:8]).values()
    assert torch.equal(torch.get_rng_state(), state)
    titles = [text.get_text() for text in figure.axes[0].texts[1:]]
    assert titles == [f"class {k}" for k in module(x[:8]).argmax(1).tolist()]
    figure = draw_examples(x[:2], x[:2], torch.tensor([0, 1]), torch.tensor([0, 2]), torch.tensor([0, 1]))
    colours = [text.get_color() for axis in figure.axes[:2] for text in axis.texts[1:]]
    assert colours == ["black", "black", "black", "firebrick"]


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_images_of_other_channels_are_drawn_by_their_mean(channels):
    """Regression: a picture of 2 or 5 channels ended the run, and a fourth channel was taken as opacity."""
    x, y = torch.rand(2, channels, 6, 5), torch.tensor([0, 1])
    figure = draw_examples(x, x, y, y, y)
    drawn = torch.from_numpy(figure.axes[0].images[0].get_array().data)
    assert drawn.shape == (6, 14, 3)
    torch.testing.assert_close(drawn[:, :5, 1], x[0].mean(0))
    assert figure.axes[0].texts[0].get_text() == f"image\n(mean of {channels} channels)"
    budgets = draw_budgets(x, x, white=0.5)
    assert budgets.axes[0].get_ylabel() == f"image\n(mean of {channels} channels)"
    assert budgets.axes[0].images[0].get_array().shape[:2] == (6, 5)


def test_wrong_settings_of_the_picture_are_named():
    with pytest.raises(SettingError, match=r"AdversarialExamples\.count: got 0; give at least 1"):
        AdversarialExamples(count=0)
    with pytest.raises(SettingError, match="steps: got 0"):
        AdversarialExamples(steps=0)


@pytest.mark.slow
def test_of_two_processes_the_first_writes(tmp_path):
    settings = ["--trainer.max_epochs=1", "--trainer.log_every_n_steps=1", "--trainer.devices=2", DDP]
    run_together(["fit", *SMALL, *LOUD, *settings, f"--trainer.default_root_dir={tmp_path}"], 2)
    log = events(tmp_path / "lightning_logs" / "version_0")
    assert len(log.Scalars("train/images_per_second")) == 3
    assert text(log, "settings")
