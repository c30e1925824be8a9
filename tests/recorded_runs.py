"""Records of runs, made up for the tests of reports."""

import base64
import json

import numpy as np

import report

CLEAN, CERTIFIED, ATTACKED = "test/accuracy/clean", "test/certified_accuracy/linf_0.1", "test/accuracy/pgd/linf_0.1"


def outcomes(correct, images="all"):
    packed = base64.b64encode(np.packbits(np.array(correct, dtype=bool))).decode()
    return {"images": images, "count": len(correct), "correct": packed}


def attack(steps=20, name="pgd"):
    case = {"attack": {"class_path": "robust.attacks.PGD", "init_args": {"steps": steps}}, "name": name, "norm": "linf"}
    evaluation = {"attacks": {"linf": case | {"epsilon": 0.1}}}
    return {"class_path": "callbacks.AdversarialEvaluation", "init_args": evaluation}


def write_run(
    folder, method="TRADES", seed=0, metrics=None, *, fit=None, data=None, callbacks=(), model=None, **record
):
    """Write ``results.json`` of a training, with the metrics ``fit``, and its test; returns the folder."""
    config = {
        "seed_everything": seed,
        "trainer": {"max_epochs": 3, "default_root_dir": str(folder), "callbacks": list(callbacks)},
        "model": {"class_path": f"lightning_modules.{method}", "init_args": {"epsilon": 0.1, **(model or {})}},
        "data": {"class_path": "datamodules.Digits", "init_args": {"batch_size": 32, **(data or {})}},
    }
    common = {
        "method": method,
        "seed": seed,
        "commit": "a" * 40,
        "device": "1 x CPU",
        "wall_time": 60.0,
        "config": config,
    }
    fit = common | {"metrics": fit or {"val/accuracy/clean": 0.5}, "command": "python train.py fit --config mine.yaml"}
    test = common | {"metrics": metrics or {CLEAN: 0.9}, "command": "python train.py fit", "samples": {"test": 5000}}
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"fit": fit | record, "test": test | record}))
    return folder


def rows(tmp_path, *arguments):
    """The rows of the JSON report of all runs in a folder, by label."""
    assert report.main([str(tmp_path), "--output", str(tmp_path / "report.json"), *arguments]) == 0
    written = json.loads((tmp_path / "report.json").read_text())
    (tmp_path / "report.json").unlink()
    return {row["label"]: row for row in written["rows"]}
