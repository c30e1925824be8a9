"""Blocks of code of README, CONTRIBUTING and docs, and how a user runs them: each as a file of its own.

A page's blocks run in a folder of the user's, one after the other. An HTML comment in front of a block says, with the
reason, what is not run as the page shows it:

* ``<!-- slow: ... -->``: it runs in the slow tests,
* ``<!-- parsed: ... -->``: it never runs, but ``train.py`` accepts its arguments,
* ``<!-- not run: ... -->``: only its syntax is checked.

A block's first line may name its file (``# mine.yaml``). Settings without data come behind those of an experiment.
"""

import re
import runpy
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

import train
from tests.testers import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ENDINGS = {"bash": "sh", "python": "py", "yaml": "yaml"}
OTHER = ("text", "{eval-rst}", "{toctree}", "{include}")  # output of commands, and directives of Sphinx
BLOCK = re.compile(
    r"(?:^ *<!-- (?P<marker>[^:\n]*): (?P<reason>[^\n]*) -->\n\n)?"
    r"^(?P<indent> *)```(?P<language>[^\n ]*)[^\n]*\n(?P<text>.*?)^ *```$",
    re.DOTALL | re.MULTILINE,
)
UV = '#!/bin/bash\nprintf "%s\\0" "$@" >> "$CALLS"\necho >> "$CALLS"\n'  # notes how it is called


@dataclass(frozen=True)
class Block:
    """A block, with the marker in front of it."""

    page: Path
    line: int
    language: str
    text: str
    marker: str | None

    @property
    def name(self):
        """Name of its file: the one that its first line gives, or one of its own."""
        named = re.match(r"# (\w+\.(?:py|yaml))\b", self.text)
        return named[1] if named else f"{self.page.stem}_{self.line}.{ENDINGS[self.language]}"

    @property
    def session(self):
        """Whether it is a session of Python, which tests/test_library.py runs."""
        return self.text.startswith(">>>")

    def save(self, folder):
        path = folder / self.name
        path.write_text(self.text, encoding="utf-8")
        return path


def blocks(page):
    """All blocks of code of a page."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        assert match["language"] in (*ENDINGS, *OTHER), f"{page.name}: a block without a language"
        if match["language"] in ENDINGS:
            line = text.count("\n", 0, match.start("language")) + 1
            lines = "".join(row.removeprefix(match["indent"]) for row in match["text"].splitlines(keepends=True))
            found.append(Block(page, line, match["language"], lines, match["marker"]))
    return found


def prepare(folder):
    """Make a folder of a user's who has the checkout's configs there, and calls one of them CONFIG."""
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "CONFIG").write_text("config: configs/adversarial_training/digits.yaml")


def calls(block, folder):
    """Programs and arguments of each ``uv run`` of a block, as bash gives them to it; any other program fails."""
    programs, noted = folder / "programs", folder / "calls"
    programs.mkdir(exist_ok=True)
    (programs / "uv").write_text(UV)
    (programs / "uv").chmod(0o755)
    noted.write_text("")
    done = subprocess.run(
        ["/bin/bash", "-euc", block.text],
        cwd=folder,
        env={"PATH": str(programs), "CALLS": str(noted), "HOME": "/home/user"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{block.page.name}:{block.line}: {done.stderr}"
    return [program(line.split("\0")[:-1]) for line in noted.read_text().splitlines()]


def program(call):
    """The script and its arguments of ``uv run [--project FOLDER] SCRIPT ...``."""
    assert call[0] == "run"
    script, *arguments = call[3:] if call[1] == "--project" else call[1:]
    return Path(script).name, arguments


def accept(arguments):
    """Let ``train.py`` parse a command line, without the checkpoint, which is not there."""
    if "--ckpt_path" in arguments:
        place = arguments.index("--ckpt_path")
        arguments = arguments[:place] + arguments[place + 2 :]
    if arguments[0] == "export" and "--config" not in arguments:
        arguments = [*arguments, "--model=StandardTraining", "--model.classifier=robust.networks.DMSmall"]
    with pytest.raises(SystemExit) as stop:
        train.main([*arguments, "--print_config"])
    assert stop.value.code == 0, arguments


def check(block, folder):
    """Check a block's syntax and, unless it is marked ``not run``, the settings that it gives ``train.py``."""
    path = block.save(folder)
    if block.language == "python":
        compile(block.text if not block.session else "", path.name, "exec")
    elif block.language == "bash":
        subprocess.run(["/bin/bash", "-n", path], check=True)
        for script, arguments in calls(block, folder) if block.marker != "not run" else ():
            if script == "train.py":
                accept(arguments)
    else:
        settings = yaml.safe_load(block.text)
        before = [] if {"config", "data"} & settings.keys() else ["--config=CONFIG"]
        if block.marker != "not run":
            accept(["fit", *before, f"--config={block.name}"])


def run(block, folder, settings):
    """Run a block as its user does.

    Args:
        block: it has no marker, or ``slow``.
        folder: the working directory.
        settings: arguments behind those of each command, to shorten it.
    """
    path = block.save(folder)
    if block.language == "python" and not block.session:
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(folder)  # as Python does for a script
            runpy.run_path(str(path), run_name="__main__")
    for script, arguments in calls(block, folder) if block.language == "bash" else ():
        assert script == "train.py", f"{block.page.name}:{block.line} runs {script}: mark it"
        train.main([*arguments, *settings])


def run_page(page, folder, settings):
    """Run the blocks of a page, one after the other."""
    for block in blocks(page):
        if block.marker in (None, "slow"):
            run(block, folder, settings)
