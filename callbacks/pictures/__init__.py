"""Pictures of adversarial examples, learned budgets and decision boundaries: one file each, with a common base."""
