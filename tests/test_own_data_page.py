"""The blocks of code of docs/own_data.md run one after the other, as a user would run them."""

import csv
import re
import shlex

import train
from tests.testers import ROOT, results_in


def test_the_tutorial(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "own_data.md").read_text(encoding="utf-8")
    (python,), (settings,) = (
        re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL) for language in ("python", "yaml")
    )
    exec(python, {})
    (tmp_path / "fruit.yaml").write_text(settings, encoding="utf-8")
    commands = re.findall(r"```bash\nuv run train\.py (.*?)\n```", page)
    assert [command.split()[0] for command in commands] == ["fit", "predict"]
    for command in commands:
        train.main([*shlex.split(command), "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"])
    metrics = results_in(tmp_path / "logs" / "fruit" / "results.json")["metrics"]
    assert 0.5 < metrics["test/certified_accuracy/own_budgets"] <= metrics["test/accuracy/clean"]
    with (tmp_path / "logs" / "fruit" / "predictions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [f"picture {number}.png" for number in range(5)]
    assert [row["class"] for row in rows] == ["Äpfel", "limes", "plums", "Äpfel", "limes"]
    for name in ("probability/Äpfel", "certified_epsilon/own_budgets"):
        assert name in rows[0]
