"""Compares runs: reads their records, groups them by seeds, tests differences, writes pages and tables; no torch."""
