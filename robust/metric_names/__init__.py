"""Names of metrics, and what each means. Plain Python, without torch."""
