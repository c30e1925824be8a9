"""An object whose code runs when an unsafe reader loads it."""

import os


class Payload:
    """Writes a file when an unsafe reader loads it."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)
