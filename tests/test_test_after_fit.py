"""A test that follows a training refuses its settings before the training."""

import pytest

import train
from tests.testers import ROOT

SMALL = [
    f"--config={ROOT / 'configs' / 'quickstart.yaml'}",
    "--test_after_fit=true",
    "--trainer.callbacks=[]",
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=1",
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
]
VOLUME = "--trainer.callbacks+={class_path: CertifiedVolume, init_args: {num_samples: "
TWICE = ["--trainer.callbacks+={class_path: ResumableTest, init_args: {folder: a}}"] * 2
WRONG = {
    "more images than there are": (["--data.test_images=400"], "data.test_images: got 400; the test has 299 images"),
    "a fraction of no batch": (
        ["--trainer.limit_test_batches=0.001"],
        "trainer.limit_test_batches: got 0.001; the test has 2 batches, and this is none of them; give a larger",
    ),
    "groups": (["--trainer.callbacks+=GroupAccuracy"], "data: got 'Digits'; GroupAccuracy needs data in groups"),
    "regions": (["--trainer.callbacks+=BudgetRegions"], "BudgetRegions, data: got 'Digits'; it has no method regions"),
    "more volumes than images": ([f"{VOLUME}400}}}}"], "CertifiedVolume.num_samples: got 400; the test has 299 images"),
    "volumes of some batches": (
        [f"{VOLUME}5}}}}", "--trainer.limit_test_batches=1"],
        "trainer.limit_test_batches: got 1; leave it out: CertifiedVolume draws",
    ),
    "a file as folder of volumes": ([f"{VOLUME}5, state_folder: file}}}}"], "CertifiedVolume.state_folder: got 'file'"),
    "two folders of results": (TWICE, "trainer.callbacks: got '2 x ResumableTest'; give one"),
    "a file as folder of results": (
        ["--trainer.callbacks+={class_path: ResumableTest, init_args: {folder: file}}"],
        "ResumableTest.folder: got 'file'; it cannot be written",
    ),
}


@pytest.mark.thorough_but("groups", "a fraction of no batch")
@pytest.mark.parametrize(("settings", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_setting_of_the_test_ends_the_run_before_its_training(settings, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stop:
        train.main(["fit", *SMALL, *settings, f"--trainer.default_root_dir={tmp_path / 'run'}"])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("run/**/*.ckpt"))
