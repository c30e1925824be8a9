"""Evaluations of classifiers on validation and test data: one file each, on a common base."""
