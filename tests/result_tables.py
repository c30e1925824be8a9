"""A project with a page, two runs and a table, for tests of tables."""

import json

import yaml


def project(folder, table):
    """A project with a page, two runs and a table."""
    (folder / "docs").mkdir()
    (folder / "docs" / "page.md").write_text("Before\n<!-- begin results mine -->\nold\n<!-- end results -->\nAfter\n")
    (folder / "results" / "tables").mkdir(parents=True)
    (folder / "results" / "tables" / "mine.yaml").write_text(yaml.safe_dump(table))
    for seed, accuracy in enumerate((0.98, 0.96)):
        record = {"metrics": {"test/accuracy/clean": accuracy}, "method": "MSD", "seed": seed, "commit": "a" * 40}
        (folder / "results" / f"{seed}.json").write_text(json.dumps({"test": record | {"wall_time": 90.0}}))
    return folder
