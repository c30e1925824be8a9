"""The cached look-ups of tests/quick_parsing.py are those of jsonargparse."""

import subprocess
import sys

import pytest
from jsonargparse import Namespace

from tests import quick_parsing
from tests.resolved_configs import parsers
from tests.testers import ROOT

NAMES = [
    "model",
    "data",
    "config",
    "c",
    "trainer.max_epochs",
    "seed_everything",
    "help",
    "absent",
    "trainer",
    "model.x",
]


@pytest.mark.parametrize("exclude", [None, quick_parsing._LAST])
@pytest.mark.parametrize("name", [*NAMES, "fit", "fit.model", "fit.trainer.max_epochs", "fit.absent"])
def test_an_action_is_the_one_that_jsonargparse_finds(name, exclude):
    for parser in parsers():
        assert quick_parsing.find_action_and_subcommand(parser, name, exclude) == quick_parsing._find(
            parser, name, exclude
        )


def test_an_action_that_is_added_later_is_found():
    parser = type(parsers()[1])()
    assert quick_parsing.find_action_and_subcommand(parser, "later") == (None, None)
    action = parser.add_argument("--later", type=int)
    assert quick_parsing.find_action_and_subcommand(parser, "later") == (action, None)


@pytest.mark.parametrize("key", ["a", "a.b", "keys", "get", "", "a b", "a..b", "é", "1", 3])
def test_a_key_is_parsed_as_by_jsonargparse(key):
    def outcome(parse):
        try:
            return parse(space, key)
        except Exception as error:
            return type(error), str(error)

    space = Namespace(a=Namespace(b=1))
    assert outcome(quick_parsing.parse_key) == outcome(quick_parsing._parse_key)


def test_a_program_of_its_own_has_none_of_them():
    code = "import train, jsonargparse, sys; assert 'tests.quick_parsing' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
