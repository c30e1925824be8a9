"""Write the table of all metrics into its page: ``python -m tests.metrics_page``."""

import re
from pathlib import Path

from robust.metric_names.registry import markdown_table

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"


def current():
    """The page with the registry's table."""
    table = f"<!-- begin metrics -->\n{markdown_table()}\n<!-- end metrics -->"
    return re.sub(r"<!-- begin metrics -->.*<!-- end metrics -->", lambda _: table, PAGE.read_text(), flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(current())
