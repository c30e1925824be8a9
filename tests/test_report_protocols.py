"""What a report makes of records of protocols: copies of records, balls of several norms, what was left out."""

import json
import shutil

from reports.caveats import add_caveats
from reports.report import make_report
from reports.rows import group
from reports.runs import read_runs
from reports.settings import attacks
from reports.tables import markdown
from tests.recorded_runs import ATTACKED, CLEAN, attack, outcomes, write_run


def balls(steps=5):
    case = {"attack": {"class_path": "robust.attacks.PGD", "init_args": {"steps": steps}}}
    given = {"attacks": {"pgd": case, "square": case | {"norm": "linf"}}, "balls": {"linf": 0.1, "l2": 1.5}}
    return {"class_path": "callbacks.AdversarialEvaluation", "init_args": given}


def test_a_copy_of_a_record_is_a_run_though_its_checkpoint_is_elsewhere(tmp_path):
    folder = write_run(tmp_path / "logs")
    records = json.loads((folder / "results.json").read_text())
    checkpoint = folder / "checkpoints" / "last.ckpt"
    records["test"]["config"]["ckpt_path"] = str(checkpoint)
    (folder / "results.json").write_text(json.dumps(records))
    shutil.copyfile(folder / "results.json", tmp_path / "copy_0.json")
    (run,) = read_runs([tmp_path / "copy_0.json"])
    assert run.path == tmp_path / "copy_0.json"
    assert run.metrics[CLEAN] == 0.9
    assert run.training is not None


def test_attacks_in_balls_are_named_by_norm_and_size():
    found = attacks({"trainer": {"callbacks": [balls(), attack()]}})
    assert set(found) == {"pgd in linf 0.1", "pgd in l2 1.5", "square in linf 0.1"}


def test_what_was_left_out_is_a_caveat(tmp_path):
    rows = group(read_runs([write_run(tmp_path / "a", skipped={"CertifiedEvaluation": "no bound"})]))
    add_caveats(rows, "test")
    assert "CertifiedEvaluation was left out: no bound" in rows[0].caveats


def test_labels_have_no_settings_of_a_class_that_differs(tmp_path):
    for name, optimizer in (("a", {"SGD": {"lr": 0.1, "momentum": 0.9}}), ("b", {"Adam": {"lr": 0.2}})):
        ((kind, settings),) = optimizer.items()
        write_run(tmp_path / name, model={"optimizer": {"class_path": f"torch.optim.{kind}", "init_args": settings}})
    labels = [row.label for row in group(read_runs([tmp_path]))]
    assert labels == ["TRADES: optimizer SGD", "TRADES: optimizer Adam"]


def test_rows_of_the_same_classes_are_told_apart_by_their_settings(tmp_path):
    for name, optimizer, rate in (("a", "SGD", 0.1), ("b", "SGD", 0.2), ("c", "Adam", 0.1)):
        settings = {"class_path": f"torch.optim.{optimizer}", "init_args": {"lr": rate}}
        write_run(tmp_path / name, model={"optimizer": settings})
    labels = [row.label for row in group(read_runs([tmp_path]))]
    same = "TRADES: optimizer SGD, optimizer.lr"
    assert labels == [f"{same} 0.1", f"{same} 0.2", "TRADES: optimizer Adam"]


def test_markdown_leaves_out_details(tmp_path):
    ball = "certified_accuracy/linf_0.1"
    metrics = {CLEAN: 0.9, f"{CLEAN}/vote": 0.8, f"test/{ball}": 0.5, f"test/{ball}/ibp": 0.4}
    table = markdown(make_report([write_run(tmp_path / "a", metrics=metrics)], "test", None))
    assert f"| {ball} ↑" in table
    assert "/ibp" not in table
    assert "/vote" not in table


def test_markdown_says_once_by_which_test_what_exceeds_chance(tmp_path):
    import numpy as np

    judged = {"a": [1] * 40, "b": [0] * 30 + [1] * 10}
    for name, correct in judged.items():
        images = {metric: outcomes(correct) for metric in (CLEAN, ATTACKED)}
        share = float(np.mean(correct))
        write_run(tmp_path / name, method=name, metrics={CLEAN: share, ATTACKED: share}, outcomes=images)
    text = markdown(make_report([tmp_path], "test", None))
    assert text.count("McNemar") == 1
    assert "Exceeds chance by McNemar's exact test on the same images" in text
    assert "accuracy/clean (p = 1.9e-09), accuracy/pgd/linf_0.1 (p = 1.9e-09)" in text
