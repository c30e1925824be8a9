"""Compares runs without torch: reads records, groups runs over seeds, tests differences, writes pages and tables."""
