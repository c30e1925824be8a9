"""Pictures of learned budgets and decision boundaries: one file each, with a common base."""
