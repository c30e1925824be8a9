"""The examples in the docstrings of ``robust`` give what they say."""

import doctest
import importlib
import pkgutil

import pytest

import robust

MODULES = sorted(module.name for module in pkgutil.walk_packages(robust.__path__, "robust."))


def documented(name):
    """The docstrings of a module that have examples."""
    return [found for found in doctest.DocTestFinder().find(importlib.import_module(name)) if found.examples]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    runner, output = doctest.DocTestRunner(), []
    failed = [runner.run(found, out=output.append).failed for found in documented(name)]
    assert not any(failed), "".join(output)


def test_there_are_examples_with_values():
    values = [example for name in MODULES for found in documented(name) for example in found.examples if example.want]
    assert len(values) >= 50
