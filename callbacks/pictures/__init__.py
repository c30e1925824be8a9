"""Pictures of what a method has learned: one file each, on a common base."""
