"""report.py: rows, differences, warnings, formats, and errors of one line."""

import csv
import json
import shutil
import time
from xml.etree import ElementTree

import pytest

import report
from reports.runs import read_runs
from tests.recorded_runs import ATTACKED, CERTIFIED, CLEAN, attack, rows, write_run


def test_runs_that_differ_by_their_seed_alone_are_one_row(tmp_path):
    for seed, accuracy in enumerate((0.8, 0.9, 1.0)):
        write_run(tmp_path / f"seed{seed}", seed=seed, metrics={CLEAN: accuracy})
    write_run(tmp_path / "again", seed=0)
    write_run(tmp_path / "larger", seed=0, model={"epsilon": 0.2})
    found = rows(tmp_path)
    assert sorted(len(row["runs"]) for row in found.values()) == [1, 1, 3]
    assert sum("epsilon 0.2" in label for label in found) == 1
    assert sum("epsilon 0.1" in label for label in found) == 2, "the repetition of seed 0 is a row of its own"


FOLDER = "datamodules.ImageFolder"


def test_pictures_of_other_folders_are_other_data(tmp_path):
    for seed, (root, accuracy) in enumerate((("cats", 0.99), ("tumours", 0.5))):
        file = write_run(tmp_path / root, seed=seed, metrics={CLEAN: accuracy}, data={"root": root}) / "results.json"
        file.write_text(file.read_text().replace("datamodules.Digits", FOLDER))
    assert [len(row["runs"]) for row in rows(tmp_path).values()] == [1, 1]
    for root in ("cats", "tumours"):
        file = tmp_path / root / "results.json"
        file.write_text(file.read_text().replace(FOLDER, "datamodules.MNIST"))
    assert [len(row["runs"]) for row in rows(tmp_path).values()] == [2], "where MNIST is does not matter"


@pytest.mark.parametrize(
    ("callback", "count"),
    [
        ("pytorch_lightning.callbacks.EMAWeightAveraging", 2),
        ("my_module.MyCallback", 2),
        ("pytorch_lightning.callbacks.LearningRateMonitor", 1),
        ("callbacks.BudgetImages", 1),
        ("cli.pruning.Pruning", 1),
    ],
)
def test_callbacks_that_may_change_a_training_distinguish_rows(tmp_path, callback, count):
    write_run(tmp_path / "with", seed=0, callbacks=[{"class_path": callback, "init_args": {}}])
    write_run(tmp_path / "without", seed=1)
    assert len(rows(tmp_path)) == count


def test_networks_of_one_name_in_two_files_are_two_rows(tmp_path):
    """Regression: their figures were averaged as seeds of one experiment."""
    for seed, file in enumerate(("net_v1", "net_v2", "net_v2")):
        model = {"classifier": {"class_path": f"{file}.Net"}}
        write_run(tmp_path / str(seed), seed=seed, metrics={CLEAN: 0.9}, model=model)
    assert sorted(len(row["runs"]) for row in rows(tmp_path).values()) == [1, 2]


def test_networks_of_one_path_in_two_files_are_two_rows(tmp_path):
    """Regression: v0/my_networks.py and v1/my_networks.py were averaged as seeds."""
    for seed, code in enumerate(("0a", "1b", "1b")):
        model = {"classifier": {"class_path": "my_networks.Net"}}
        write_run(tmp_path / str(seed), seed=seed, model=model, own_code={"my_networks.Net": code})
    table = rows(tmp_path)
    label = "TRADES: classifier my_networks.Net (file {})"
    assert {name: len(row["runs"]) for name, row in table.items()} == {label.format("0a"): 1, label.format("1b"): 2}


def test_mean_and_std_over_seeds(tmp_path):
    for seed, accuracy in enumerate((0.8, 0.9, 1.0)):
        write_run(tmp_path / f"seed{seed}", seed=seed, metrics={CLEAN: accuracy})
    (row,) = rows(tmp_path).values()
    assert row["metrics"][CLEAN]["mean"] == pytest.approx(0.9)
    assert row["metrics"][CLEAN]["std"] == pytest.approx(0.1)


def test_a_test_elsewhere_of_weights_that_trained_on_is_a_run_of_its_own(tmp_path):
    """Regression: its metrics were those of the finished training."""
    trained = write_run(tmp_path / "trained", training_cost={"forward_equivalents": 10.0})
    records = json.loads((trained / "results.json").read_text())
    tested = records["test"] | {"metrics": {CLEAN: 0.2}, "checkpoint": str(trained / "checkpoints" / "last.ckpt")}
    resumed = records["fit"] | {"training_cost": {"forward_equivalents": 90.0}, "metrics": {"val/loss": 0.1}}
    (trained / "results.json").write_text(json.dumps({"fit": records["fit"], "fit-2": resumed}))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "results.json").write_text(json.dumps({"test": tested}))
    runs = {run.path.parent.name: run for run in read_runs([tmp_path])}
    assert runs["trained"].metrics == {"val/loss": 0.1}, "those of the first training are not of these weights"
    assert runs["elsewhere"].metrics == {CLEAN: 0.2}


def test_a_test_elsewhere_belongs_to_the_training_of_its_checkpoint(tmp_path):
    trained = write_run(tmp_path / "trained", seed=3)
    tested = json.loads((trained / "results.json").read_text())["test"]
    tested |= {"seed": 0, "metrics": {ATTACKED: 0.25}}
    tested["config"]["ckpt_path"] = str(trained / "checkpoints" / "last.ckpt")
    (tmp_path / "tested").mkdir()
    (tmp_path / "tested" / "results.json").write_text(json.dumps({"test": tested}))
    (row,) = rows(tmp_path).values()
    assert {name: value["mean"] for name, value in row["metrics"].items()} == {CLEAN: 0.9, ATTACKED: 0.25}
    assert [run["seed"] for run in row["runs"]] == [3]


def test_a_test_after_a_continued_training_is_of_the_new_weights(tmp_path):
    """Regression: it counted for the training that the checkpoint came from."""
    first = write_run(tmp_path / "first", metrics={CLEAN: 0.5})
    longer = write_run(tmp_path / "longer", metrics={CLEAN: 0.9}, model={"width": 2}, checkpoint=None)
    records = json.loads((longer / "results.json").read_text())
    for record in records.values():
        record["config"]["ckpt_path"] = str(first / "checkpoints" / "last.ckpt")
    (longer / "results.json").write_text(json.dumps(records))
    found = {run.path.parent.name: run.metrics[CLEAN] for run in read_runs([tmp_path])}
    assert found == {"first": 0.5, "longer": 0.9}


def test_linked_runs_are_found_once(tmp_path):
    write_run(tmp_path / "disk" / "run")
    (tmp_path / "logs").mkdir()
    for name in ("a", "b"):
        (tmp_path / "logs" / name).symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "back").symlink_to(tmp_path / "logs")
    assert len(read_runs([tmp_path / "logs"])) == 1


def test_a_baseline_with_this_label_wins_over_parts_of_labels(tmp_path, capsys):
    for folder, method in (("free", "FreeTraining"), ("plain", "Training"), ("again", "MultiTraining")):
        write_run(tmp_path / folder, method)
    assert report.main([str(tmp_path), "--baseline", "Training"]) == 0
    assert "| Training (baseline) |" in capsys.readouterr().out


def warned(tmp_path, **changes):
    """Warnings of a run that differs from two others as given."""
    for index in range(2):
        write_run(tmp_path / f"usual{index}", seed=index, callbacks=[attack()])
    write_run(tmp_path / "changed", "MSD", **{"callbacks": [attack()], **changes})
    found = rows(tmp_path)
    assert found["TRADES"]["caveats"] == []
    return found["MSD"]["caveats"]


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"callbacks": [attack(steps=5)]}, "unequal attacks: other settings of pgd in linf 0.1 than most rows"),
        ({"callbacks": [attack(name="apgd")]}, "unequal attacks: without pgd in linf 0.1"),
        ({"callbacks": [attack(name="apgd")]}, "unequal attacks: also apgd in linf 0.1, unlike most rows"),
        ({"samples": {"test": 100}}, "few samples: some metrics are of 100 images, ±9.8 points"),
        ({"metrics": {CLEAN: 0.9, "test/masking/failed_checks": 2.0}}, "masked gradients: 2 checks failed"),
        ({"data": {"augmentation": None, "rotation": 3}}, "other data than most rows"),
        ({"commit": "b" * 40 + "-dirty"}, "dirty commit: the code had changes that are not committed"),
        ({"commit": None}, "unknown commit"),
        ({"metrics": {CLEAN: 0.9, CERTIFIED: 0.95}}, f"contradiction, or other images: {CERTIFIED} is above {CLEAN}"),
        ({"metrics": {CLEAN: None}}, f"not finite: {CLEAN}"),
    ],
)
def test_warnings_stand_in_the_row(tmp_path, changes, warning):
    assert warning in warned(tmp_path, **changes)


def test_a_run_without_peculiarities_has_no_warnings(tmp_path):
    assert warned(tmp_path, data={"batch_size": 8, "num_workers": 2}) == []


def test_repeated_measurements_and_several_commits_are_named(tmp_path):
    folder = write_run(tmp_path / "a")
    records = json.loads((folder / "results.json").read_text())
    records["test-2"] = records["test"] | {"metrics": {CLEAN: 0.5}, "commit": "c" * 40}
    (folder / "results.json").write_text(json.dumps(records))
    (row,) = rows(tmp_path).values()
    assert row["metrics"][CLEAN]["mean"] == 0.5
    assert row["caveats"] == [
        f"measured again with another value, the last one counts: {CLEAN}",
        "2 commits: aaaaaaa, ccccccc",
    ]


def test_the_picture_has_the_rows_the_most_robust_first(tmp_path):
    union = "test/accuracy/union"
    for method, accuracy in {"MSD": 0.2, "TRADES": 0.5, "MNGAC": 0.3}.items():
        write_run(tmp_path / method, method=method, metrics={CLEAN: 0.9, union: accuracy})
    assert report.main([str(tmp_path), "--output", str(tmp_path / "report.svg")]) == 0
    texts = [each.text for each in ElementTree.parse(tmp_path / "report.svg").iter() if each.text]
    order = [text for text in texts if text in ("MSD", "TRADES", "MNGAC")]
    assert order == ["TRADES", "MNGAC", "MSD"]
    assert {"accuracy/clean", "accuracy/union"} <= set(texts)


def test_the_front_joins_the_rows_that_no_other_dominates(tmp_path):
    for method, (clean, certified) in {"MSD": (0.9, 0.2), "TRADES": (0.8, 0.5), "MNGAC": (0.7, 0.4)}.items():
        write_run(tmp_path / method, method=method, metrics={CLEAN: clean, CERTIFIED: certified})
    output = tmp_path / "front.svg"
    assert report.main([str(tmp_path), "--front", "certified_accuracy/linf_0.1", "--output", str(output)]) == 0
    parts = list(ElementTree.parse(output).iter())
    assert {"MSD", "TRADES", "MNGAC", "clean accuracy", "certified_accuracy/linf_0.1"} <= {part.text for part in parts}
    (line,) = [part for part in parts if part.get("aria-roledescription") == "line mark"]
    assert line.get("d").count("L") == 1, "a line from TRADES to MSD"


def test_all_formats(tmp_path, capsys):
    margins = {CERTIFIED: [-1.0, 0.5, 2.0]}
    write_run(tmp_path / "a", metrics={CLEAN: 0.9, CERTIFIED: 0.5, "test/certified_accuracy/linf_0.2": 0.25})
    write_run(tmp_path / "b", "MSD", metrics={CLEAN: 0.8, CERTIFIED: 0.6}, commit="b-dirty", margins=margins)
    outputs = [tmp_path / f"report.{ending}" for ending in ("html", "md", "csv")]
    assert report.main([str(tmp_path), "--output", *map(str, outputs)]) == 0
    page, text, table = (output.read_text() for output in outputs)
    for part in ("dirty commit", "python train.py fit --config mine.yaml", "90.00", 'id="spec-pareto"', "spec-epsilon"):
        assert part in page
    assert 'id="spec-margins"' in page
    assert "spec-training" not in page, "there are no event files"
    assert "| MSD | 80.00 | 60.00 |  |" in text
    assert "* **MSD**: dirty commit" in text
    lines = list(csv.DictReader(table.splitlines()))
    assert [(line["row"], line["metric"], line["mean"]) for line in lines[:2]] == [
        ("TRADES", CLEAN, "0.9"),
        ("TRADES", CERTIFIED, "0.5"),
    ]
    capsys.readouterr()
    assert report.main([str(tmp_path / "a"), "--stage", "val"]) == 0
    assert "| TRADES (baseline) | 50.00 |" in capsys.readouterr().out


def test_the_baseline_is_the_first_row_with_a_metric(tmp_path, capsys):
    file = write_run(tmp_path / "a") / "results.json"
    file.write_text(json.dumps({"fit": json.loads(file.read_text())["fit"]}))
    write_run(tmp_path / "b", "MSD")
    assert report.main([str(tmp_path)]) == 0
    assert "| MSD (baseline) |" in capsys.readouterr().out


def test_the_page_loads_nothing(tmp_path):
    write_run(tmp_path / "a", model={"note": "</script><b>"})
    write_run(tmp_path / "b", model={"note": "plain"})
    report.main([str(tmp_path), "--output", str(tmp_path / "report.html")])
    page = (tmp_path / "report.html").read_text()
    markup = page[: page.index("<script")] + page[page.rindex("</script>") :]
    assert 'src="http' not in page
    assert "@import" not in page
    assert '<link rel="icon" href="data:,">' in markup
    assert "</script><b>" not in page, "settings are escaped"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "runs: got []; give log folders of runs or files like results.json"),
        (["absent"], "runs: got 'absent'; it does not exist; give a log folder or a results.json"),
        (
            ["empty"],
            "runs: got 'empty'; it has no results.json; give the log folder of a run, or a folder of log",
        ),
        (
            ["renamed"],
            "runs: got 'renamed'; it has no results.json; name those of its files that are records, such as "
            "renamed/*/*.json",
        ),
        (["list.json"], "runs: got 'list.json'; it has no records with metrics; give a results.json"),
        (
            ["text.json"],
            "runs: got 'text.json'; it is not valid JSON (Expecting value: line 1 column 1 (char 0)); give a results",
        ),
        (["a", "-o", "x.pdf"], "output: got 'x.pdf'; give a file that ends in .html, .md, .csv, .json, .svg"),
        (["a", "-o", "empty"], "output: got 'empty'; it is a folder; give a file"),
        (["a", "-o", "a/results.json"], "output: got 'a/results.json'; this is the record of a run; give another file"),
        (["list.json", "-o", "list.json"], "output: got 'list.json'; this is the record of a run; give another file"),
        (["a", "--update-docs"], "update-docs: got True; it reads and writes files of its own; give it alone"),
        (["a", "-o", "no/x.md"], "output: got 'no/x.md'; its folder does not exist; create it first"),
        (
            ["a", "--front", "accuracy/union", "-o", "x.svg"],
            "front: got 'accuracy/union'; give an accuracy of the runs: they have none beside accuracy/clean",
        ),
        (["a", "--front", "accuracy/union"], "front: got 'accuracy/union'; give --output a file that ends in .svg"),
        (["a", "--baseline", "MSD"], "baseline: got 'MSD'; 0 rows fit; give a part of one of these: TRADES"),
    ],
)
def test_errors_are_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "renamed" / "b").mkdir(parents=True)
    shutil.copy(tmp_path / "a" / "results.json", tmp_path / "renamed" / "b" / "mine.json")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "text.json").write_text("text")
    assert report.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"report.py: error: {message}")
    assert error.count("\n") == 1


@pytest.mark.slow
def test_two_hundred_runs_take_less_than_ten_seconds(tmp_path):
    for index in range(200):
        write_run(tmp_path / f"{index}", seed=index % 3, model={"epsilon": index // 3 / 100})
    start = time.perf_counter()
    report.main([str(tmp_path), "--output", str(tmp_path / "report.html")])
    assert time.perf_counter() - start < 10
