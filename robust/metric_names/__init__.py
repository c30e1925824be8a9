"""Names of metrics: what each means, and the names of older versions. Plain Python, without torch."""
