"""Wrong settings in config files: each ends in one line with the remedy."""

import pytest

from tests.command_line import QUICKSTART
from tests.testers import error_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("modl: 1", "modl: got 1; no such setting, did you mean model?"),
        ("trainer: {max_epoch: 3}", "trainer.max_epoch: got 3; no such setting, did you mean trainer.max_epochs?"),
        ("trainer: {max_epochs: x}", "trainer.max_epochs: got 'x'; give a whole number or null"),
        ("model: {init_args: {epsilonn: 1}}", "model.epsilonn: got 1; no such setting, did you mean model.epsilon?"),
        ("model: {init_args: {epsilon: x}}", "model.epsilon: got 'x'; give a number"),
        (
            "model: {init_args: {classifier: {init_args: {num_classs: 3}}}}",
            "model.classifier.num_classs: got 3; no such setting, did you mean model.classifier.num_classes?",
        ),
        ("data: {class_path: Digit}", "data: got 'Digit'; no such class, did you mean datamodules.Digits?"),
        (
            "trainer: {callbacks: [{class_path: CertifiedEvaluation, init_args: {epsilon: 2}}]}",
            "trainer.callbacks.epsilon: got 2; no such setting, did you mean trainer.callbacks.epsilons?",
        ),
        (
            "trainer: {callbacks: [{class_path: CertifiedEvaluation, init_args: {epsilons: x}}]}",
            "trainer.callbacks.epsilons: got 'x'; give a list or null",
        ),
        (
            "trainer: {callbacks: [{class_path: CertifiedEvaluations}]}",
            "trainer.callbacks: got 'CertifiedEvaluations'; no such class, did you mean callbacks.CertifiedEvaluation?",
        ),
        (
            "model: {class_path: ContextualBudgets, epsilon: 1}",
            "model: got 'ContextualBudgets'; settings beside it belong inside init_args: epsilon",
        ),
        (
            "trainer: {callbacks: [{class_path: CertifiedEvaluation, epsilons: [1]}]}",
            "trainer.callbacks: got 'CertifiedEvaluation'; settings beside it belong inside init_args: epsilons",
        ),
        (
            "models: {class_path: TRADES, init_args: {classifier: {init_args: {num_classes: 1}}}}",
            "models: got {'class_path': 'TRADES', 'init_args': {'classifier': {'init_args': [...]; no such setting, "
            "did you mean model?",
        ),
        (
            "trainer: {callbacks: [{every_n_epochs: 3}]}",
            "trainer.callbacks.every_n_epochs: got 3; no such setting, give class_path, and its settings inside",
        ),
        ("trainr: {max_epochs: 3}", "trainr: got {'max_epochs': 3}; no such setting, did you mean trainer?"),
        (
            "trainer: {callbacks: [{class_path: AdversarialEvaluation, init_args: {attack: {pgd: {norm: l2}}}}]}",
            "trainer.callbacks.attack: got {'pgd': {'norm': 'l2'}}; no such setting, did you mean "
            "trainer.callbacks.attacks?",
        ),
        ("trainer: [", "config: got '{path}'; give a YAML file of settings (Problems parsing config: while parsing"),
        ("just text", "config: got '{path}'; give a YAML file of settings (Unexpected config: just text)"),
    ],
)
def test_wrong_setting_in_a_file(text, expected, tmp_path, capsys):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    line = error_of(["fit", *QUICKSTART, "--config", str(path)], capsys)
    assert line.startswith(expected.replace("{path}", str(path)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "data: {class_path: ImageFolder, root: pics}",
            "data: got 'ImageFolder'; settings beside it belong inside ini",
        ),
        (
            "data: Digits\nmodel: {class_path: StandardTraining, init_args: {}, epsilon: 1}",
            "model: got 'StandardTraining'; settings beside it belong inside init_args: epsilon",
        ),
    ],
)
def test_settings_beside_the_class_in_the_only_file(text, expected, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(text)
    assert error_of(["fit", f"--config={tmp_path / 'mine.yaml'}"], capsys).startswith(expected)


def test_a_module_that_is_not_found_in_the_users_folder(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("data: Digits\nmodel: my_methodd.Mine\n")
    (tmp_path / "my_method.py").write_text("class Mine: pass\n")
    line = error_of(["fit", f"--config={tmp_path / 'mine.yaml'}"], capsys)
    assert line.startswith("model: got 'my_methodd.Mine'; there is no module 'my_methodd' in ")
    assert f", {tmp_path} or the installed packages" in line or f", {tmp_path}, " in line
    assert line.endswith(", did you mean my_method.Mine?")
