"""Warnings of a report: unequal evaluations, figures that contradict each other, several runs of a row."""

import json

import pytest

from reports.report import make_report
from tests.recorded_runs import ATTACKED, CERTIFIED, CLEAN, write_run

PGD = {"class_path": "robust.attacks.PGD", "init_args": {"steps": 20}}
MINIMAX = {"steps": 10, "step_size": 0.025, "epsilon": 0.1, "restarts": 2}


def caveats(folder, stage="test"):
    """The warnings by the row's label."""
    return {row.label: row.caveats for row in make_report([folder], stage, None).rows}


def callback(name, **settings):
    return {"class_path": f"callbacks.{name}", "init_args": settings}


def three_runs(folder, usual, changed, stage="test", **record):
    """Warnings of a run whose callback differs from that of two others as given."""
    for seed in range(2):
        write_run(folder / f"usual{seed}", seed=seed, callbacks=[usual])
    write_run(folder / "changed", "MSD", callbacks=changed, **record)
    warnings = caveats(folder, stage)
    assert warnings["TRADES"] == []
    return warnings["MSD"]


@pytest.mark.parametrize(
    ("name", "usual", "changed", "setting"),
    [
        *(
            ("WeightedMinimaxEvaluation", MINIMAX, MINIMAX | changed, next(iter(changed)))
            for changed in ({"steps": 5}, {"step_size": 0.01}, {"epsilon": 0.2}, {"restarts": 1})
        ),
        ("CertifiedEvaluation", {"pgd_steps": 20}, {"pgd_steps": None}, "pgd_steps"),
        ("RobustnessScore", {"attacks": {"pgd": PGD}}, {"attacks": {"pgd": PGD, "fgsm": {}}}, "attacks"),
        ("AccuracyCurve", {"attacks": {"pgd": PGD}}, {"attacks": {"pgd": {}}}, "attacks"),
    ],
)
def test_other_settings_of_an_evaluation_are_unequal_attacks(tmp_path, name, usual, changed, setting):
    warnings = three_runs(tmp_path, callback(name, **usual), [callback(name, **changed)])
    assert warnings == [f"unequal attacks: other settings of {name}.{setting} than most rows"]


@pytest.mark.parametrize(
    ("name", "changed", "setting"),
    [
        ("CertifiedEvaluation", {"verifier": {"class_path": "robust.bounds.LirpaVerifier"}}, "verifier"),
        ("CertifiedEvaluation", {"methods": ["crown"]}, "methods"),
        ("CertifiedEvaluation", {"rounding_safe": False}, "rounding_safe"),
        ("CertifiedEvaluation", {"budgets": {"learned": {"init_args": {"checkpoint": "B.ckpt"}}}}, "budgets"),
        ("CertifiedVolume", {"search": {"class_path": "robust.bounds.LargestCertifiedBox"}}, "search"),
        ("RobustnessScore", {"attacks": {}, "halvings": 3}, "halvings"),
    ],
)
def test_other_bounds_are_unequal_evaluations(tmp_path, name, changed, setting):
    usual = {"attacks": {}} if name == "RobustnessScore" else {}
    warnings = three_runs(tmp_path, callback(name, **usual), [callback(name, **changed)])
    assert warnings == [f"unequal evaluations: other settings of {name}.{setting} than most rows"]


@pytest.mark.parametrize(
    ("name", "usual", "changed"),
    [
        ("WeightedMinimaxEvaluation", MINIMAX, MINIMAX | {"epsilon": None, "alphas": [1.0], "seed": 1}),
        ("CertifiedEvaluation", {"pgd_steps": 5}, {"margin_samples": 9}),  # by default tests have 5 steps
        ("CertifiedEvaluation", {"pgd_steps": 20}, {"pgd_steps": 0}),  # without attack
    ],
)
def test_settings_that_decide_no_compared_figure_are_not_warned_of(tmp_path, name, usual, changed):
    assert three_runs(tmp_path, callback(name, **usual), [callback(name, **changed)]) == []


@pytest.mark.parametrize(("changed", "named"), [(0.2, True), (0.1, False)])
@pytest.mark.parametrize("metric", ["test/certified_accuracy/own_budgets", CERTIFIED])
def test_learned_budgets_of_other_sizes_are_named(tmp_path, metric, changed, named):
    """Regression: their metrics, whose names have no size, were averaged as seeds without a warning."""
    for seed, epsilon in enumerate((0.1, 0.1, changed)):
        evaluation = callback("CertifiedEvaluation", epsilons=None)
        metrics = {CLEAN: 0.9, metric: 0.5}
        write_run(tmp_path / f"{seed}", seed=seed, metrics=metrics, callbacks=[evaluation], model={"epsilon": epsilon})
    warned = [text for texts in caveats(tmp_path).values() for text in texts]
    expected = "unequal evaluations: other settings of CertifiedEvaluation.epsilons than most rows"
    assert warned == ([expected] if named and metric != CERTIFIED else [])


@pytest.mark.parametrize(("changed", "named"), [(0.02, True), (0.1, False)])
@pytest.mark.parametrize("threat_model", ["own_budgets", "linf_0.1"])
def test_attacks_in_learned_budgets_of_other_sizes_are_named(tmp_path, threat_model, changed, named):
    """Regression: no test names the size of learned budgets, so that attacks of two sizes were averaged as seeds."""
    for seed, epsilon in enumerate((0.1, 0.1, changed)):
        evaluation = callback("AdversarialEvaluation", attacks={"pgd": {"attack": PGD}})
        metrics = {CLEAN: 0.9, f"test/accuracy/pgd/{threat_model}": 0.5}
        write_run(tmp_path / f"{seed}", seed=seed, metrics=metrics, callbacks=[evaluation], model={"epsilon": epsilon})
    warned = [text for texts in caveats(tmp_path).values() for text in texts]
    expected = "unequal attacks: other settings of pgd in own budgets than most rows"
    assert warned == ([expected] if named and threat_model == "own_budgets" else [])


def sampled(sigma, score="R4"):
    sampler = {"class_path": f"robust.scores.{score}", "init_args": {"sigma": sigma}}
    return callback("SampledRobustness", score=sampler, epsilons=None, seed=0)


@pytest.mark.parametrize(
    ("other", "named"), [([sampled(0.6), sampled(1, "R3")], True), ([sampled(1, "R3"), sampled(0.06)], False)]
)
def test_every_one_of_several_evaluations_of_a_class_is_compared(tmp_path, other, named):
    """Regression: the last one alone was."""
    for name in ("a", "b"):
        write_run(tmp_path / name, seed="ab".index(name), callbacks=[sampled(0.06), sampled(1, "R3")])
    write_run(tmp_path / "c", "MSD", callbacks=other)
    expected = "unequal evaluations: other settings of SampledRobustness.score than most rows"
    assert caveats(tmp_path) == {"TRADES": [], "MSD": [expected] if named else []}


def test_tests_of_one_training_on_different_data_are_named(tmp_path):
    """Regression: clean accuracy of one data set stood beside an attacked one of another."""
    write_run(tmp_path / "a", metrics={CLEAN: 0.9, ATTACKED: 0.5})
    path = tmp_path / "a" / "results.json"
    records = json.loads(path.read_text())
    again = records["test"] | {"metrics": {CLEAN: 0.1}}
    again["config"] = again["config"] | {"data": {"class_path": "datamodules.MNIST", "init_args": {"batch_size": 32}}}
    path.write_text(json.dumps(records | {"test-1": again}))
    warned = "tests of different data: each metric is of the last that has it"
    assert warned in caveats(tmp_path)["TRADES"]
    again["config"] = records["test"]["config"]
    path.write_text(json.dumps(records | {"test-1": again}))
    assert warned not in caveats(tmp_path)["TRADES"]


def test_rows_that_lack_an_evaluation_are_not_warned_of(tmp_path):
    assert three_runs(tmp_path, callback("WeightedMinimaxEvaluation", **MINIMAX), []) == []


def test_seeds_that_were_tested_on_other_numbers_of_images_are_named(tmp_path):
    """Regression: their std was shown as one over seeds."""
    for seed, count in enumerate((10000, 10000, 2000)):
        write_run(tmp_path / f"seed{seed}", "TRADES", seed, samples={"test": count})
    assert caveats(tmp_path)["TRADES"] == [
        "other number of images than most rows: 2000 against 10000",
        "unequal numbers of images: test of 2000 to 10000; the std is not over seeds alone",
    ]


def test_rows_of_other_numbers_of_images_are_named(tmp_path):
    for name, method, count in (("a", "TRADES", 10000), ("b", "AdversarialTraining", 10000), ("c", "YOPO", 1280)):
        write_run(tmp_path / name, method, samples={"test": count})
    assert caveats(tmp_path)["YOPO"] == ["other number of images than most rows: 1280 against 10000"]
    assert caveats(tmp_path)["TRADES"] == []


@pytest.mark.parametrize("stochastic", [True, False])
def test_other_numbers_of_passes_of_networks_with_noise_are_named(tmp_path, stochastic):
    for name, method, passes in (("a", "TRADES", 10), ("b", "MixedAdversarialTraining", 10), ("c", "Learn2Perturb", 1)):
        metrics = {CLEAN: 0.9} | ({f"{CLEAN}/noise_off": 0.9} if stochastic else {})
        evaluation = callback("AdversarialEvaluation", gradient_samples=passes)
        write_run(tmp_path / name, method, metrics=metrics, callbacks=[evaluation])
    expected = ["unequal attacks: other settings of AdversarialEvaluation.gradient_samples than most rows"]
    assert caveats(tmp_path)["Learn2Perturb"] == (expected if stochastic else [])


def test_a_score_of_few_images_is_named(tmp_path):
    write_run(tmp_path / "a", "TRADES", metrics={CLEAN: 0.9, "test/robustness_score/r2/samples": 64})
    (warning,) = caveats(tmp_path)["TRADES"]
    assert warning.startswith("few samples: some metrics are of 64 images")


def test_an_evaluation_that_was_left_out_is_not_compared(tmp_path):
    score, changed = callback("RobustnessScore", attacks={}), callback("RobustnessScore", attacks={"pgd": PGD})
    skipped = {"RobustnessScore": "it has noise"}
    assert three_runs(tmp_path, score, [changed], skipped=skipped) == ["RobustnessScore was left out: it has noise"]


def validated(folder, method, sizes, every_n_epochs=1):
    """A run whose validations attack in the balls that the module has of its own, and whose test does not."""
    names = [f"val/accuracy/pgd/{size}" for size in sizes]
    evaluation = callback("AdversarialEvaluation", attacks={"pgd": {"attack": PGD}}, every_n_epochs=every_n_epochs)
    write_run(folder / method, method, fit=dict.fromkeys([*names, "val/accuracy/union"], 0.5), callbacks=[evaluation])


def test_unions_of_validations_in_other_norms_are_unequal(tmp_path):
    validated(tmp_path, "AdversarialTraining", ["linf_0.1"])
    validated(tmp_path, "TRADES", ["linf_0.1"])
    validated(tmp_path, "MNGAC", ["linf_0.1", "l2_1.5"])
    warnings = caveats(tmp_path, "val")
    assert warnings["AdversarialTraining"] == warnings["TRADES"] == []
    assert warnings["MNGAC"] == ["unequal attacks: also pgd in l2 1.5, unlike most rows"]
    assert caveats(tmp_path)["MNGAC"] == [], "the test has the same attacks"


def test_evaluations_of_tests_alone_are_not_compared_in_validations(tmp_path):
    validated(tmp_path, "TRADES", ["linf_0.1"])
    validated(tmp_path, "MSD", ["l2_1.5"], every_n_epochs=None)
    assert caveats(tmp_path, "val") == {"TRADES": [], "MSD": []}


SQUARE = "test/accuracy/square/l1_12"


@pytest.mark.parametrize(
    ("metrics", "warnings"),
    [
        ({CLEAN: 0.953, SQUARE: 0.956}, ["square/l1_12 95.60 %, clean 95.30 %"]),
        ({CLEAN: 0.953, SQUARE: 0.954}, []),  # one image of the thousand
        ({CLEAN: 0.953, SQUARE: 0.956, f"{CLEAN}/attacked": 0.961}, []),  # the mean over passes
        ({CLEAN: 0.97, SQUARE: 0.956, f"{CLEAN}/attacked": 0.953}, ["square/l1_12 95.60 %, clean 95.30 %"]),
        ({CLEAN: 0.953, f"{CLEAN}/vote": 0.97, "test/accuracy/group/odd": 0.99}, []),
    ],
)
def test_an_attacked_accuracy_above_the_clean_one_is_warned_of(tmp_path, metrics, warnings):
    write_run(tmp_path / "a", metrics=metrics | {"test/attacked_samples": 1000.0})
    assert caveats(tmp_path) == {"TRADES": [f"attacked above clean, or of other images: {each}" for each in warnings]}


def test_an_attacked_accuracy_above_the_clean_one_is_warned_of_once_in_a_row(tmp_path):
    for seed, square in enumerate((0.96, 0.5, 0.97)):
        write_run(tmp_path / f"{seed}", seed=seed, metrics={CLEAN: 0.953, SQUARE: square})
    warning = "attacked above clean in 2 of 3 runs, or of other images: square/l1_12 96.00 %, clean 95.30 %"
    assert caveats(tmp_path) == {"TRADES": [warning]}


@pytest.mark.parametrize(("failed", "checks"), [((10, 8, 0), "8 to 10"), ((8, 8, 8), "8")])
def test_masked_gradients_of_several_runs_are_one_warning(tmp_path, failed, checks):
    for seed, count in enumerate(failed):
        write_run(tmp_path / f"{seed}", seed=seed, metrics={CLEAN: 0.9, "test/masking/failed_checks": float(count)})
    assert caveats(tmp_path) == {"TRADES": [f"masked gradients: {checks} checks failed"]}


def test_other_numbers_of_images_of_one_evaluation_are_named(tmp_path):
    """Regression: R2 of the first batch is of as many images as the batch has, which nothing said."""
    name = "test/robustness_score/r2/samples"
    for folder, method, count in (("a", "TRADES", 256), ("b", "MSD", 256), ("c", "MNGAC", 32)):
        write_run(tmp_path / folder, method, metrics={CLEAN: 0.9, name: count})
    assert f"other number of images of {name} than most rows: 32 against 256" in caveats(tmp_path)["MNGAC"]
    assert not any("other number" in text for text in caveats(tmp_path)["MSD"])


def test_few_images_of_an_evaluation_without_a_column_are_not_named(tmp_path):
    """Regression: the masking checks' images were named, of which no column is."""
    metrics = {CLEAN: 0.9, "test/masking/samples": 64, "test/masking/accuracy/noise/linf_0.1": 0.5}
    write_run(tmp_path / "a", "TRADES", metrics=metrics, samples={"test": 10_000})
    assert caveats(tmp_path)["TRADES"] == []
