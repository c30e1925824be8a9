"""The files around the code say what is true: checks, citations, dependencies, names of files."""

import ast
import re
import sys
import tomllib

import pytest
import yaml

from tests.testers import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# module, and its group or extra
OPTIONAL = {"auto_LiRPA": "lirpa", "pyautoattack": "eval", "torchmetrics": "metrics", "safetensors": "app"}
FOLDERS = r"(?:configs|docs|tests|robust|datamodules|lightning_modules|callbacks|cli|\.ci)"
FILE = re.compile(FOLDERS + r"/[\w./-]*\w(?![\w</])")  # no <placeholders>


def read(path):
    return yaml.safe_load((ROOT / path).read_text())


def imported(path):
    """Top-level modules that a file imports, outside of the standard library."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
        yield from {name.split(".")[0] for name in names} - sys.stdlib_module_names


def distributions(requirements):
    return {re.match(r"[\w-]+", requirement)[0].lower() for requirement in requirements}


def test_pre_commit_and_ci_run_the_same_checks():
    (repository,) = read(".pre-commit-config.yaml")["repos"]
    hooks = [hook["entry"].removeprefix(".uv/bin/uv ") for hook in repository["hooks"]]
    run = re.findall(r"^\$uv (.*)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    others = {"pytest", "sphinx-build", "benchmarks/run.py"}
    assert hooks == [command for command in run if not others & set(command.split())]
    assert len(hooks) == 5


def test_the_workflow_calls_ci_run_on_the_oldest_and_the_newest_python():
    (job,) = read(".github/workflows/ci.yml")["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    oldest, newest = job["strategy"]["matrix"]["python"]
    assert PROJECT["project"]["requires-python"] == f">={oldest},<3.{int(newest.split('.')[1]) + 1}"


def test_the_citation_lists_the_five_papers():
    citation = read("CITATION.cff")
    for key in ("version", "license"):
        assert citation[key] == PROJECT["project"][key]
    readme = (ROOT / "README.md").read_text()
    titles = [paper["title"] for paper in citation["references"]]
    assert len(titles) == 5
    assert [title for title in titles if title.split(" for Robustness under")[0] not in readme] == []
    assert all(paper["authors"] and "doi" not in paper for paper in citation["references"])


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem
)
def test_an_issue_form_is_complete(path):
    form = yaml.safe_load(path.read_text())
    if path.stem != "config":
        assert form.keys() >= {"name", "description", "body"}
        assert all(field["attributes"]["label"] for field in form["body"])


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/packaging.md"])
def test_files_that_a_page_names_exist(page):
    text = (ROOT / page).read_text()
    assert [name for name in FILE.findall(text) if not (ROOT / name).exists()] == []


def test_the_library_depends_on_what_it_imports():
    needed = {name for path in (ROOT / "robust").rglob("*.py") for name in imported(path)} - {"robust"}
    assert needed - OPTIONAL.keys() == distributions(PROJECT["project"]["dependencies"])
    extras, groups = PROJECT["project"]["optional-dependencies"], PROJECT["dependency-groups"]
    for module, name in OPTIONAL.items():
        assert module.lower() in distributions((extras | groups)[name])


def test_the_wheel_holds_the_library_alone():
    setuptools = PROJECT["tool"]["setuptools"]
    assert setuptools["packages"]["find"]["include"] == ["robust", "robust.*"]
    assert "py-modules" not in setuptools
    assert (ROOT / "robust" / "py.typed").is_file()
