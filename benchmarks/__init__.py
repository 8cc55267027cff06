"""What the figures of README.md and results/ were measured with, beyond train.py and evaluate.py."""

import files

with files.quietly():
    import keras  # noqa: F401
