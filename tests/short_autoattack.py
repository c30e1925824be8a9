"""pyautoattack's ensemble with few steps, queries and target classes, which runs all of its code in less time."""


def shortened(library, steps=10):
    """The library's class, whose attacks take so many steps, against three target classes.

    Args:
        library: the module ``pyautoattack``.
        steps: of each attack.
    """

    class Short(library.AutoAttack):
        def __init__(self, *args, **settings):
            super().__init__(*args, **settings)
            for part in (self.apgd, self.apgd_targeted, self.fab, self.square):
                part.n_iter = part.n_iter_orig = steps
                part.n_queries, part.n_target_classes = 50, 3
                if hasattr(part, "eot_iter"):
                    part.eot_iter = min(part.eot_iter, 2)

    return Short
