"""The exceptions that mean "your input" or "this run cannot go on", as opposed to "our bug"."""


class InputError(ValueError):
    """Input that cannot be used. The message is one sentence: the file and line, or the argument, expected and got.

    Command-line programs print the message and exit with code 2 (`iact.__main__`)."""


class TrainingStopped(RuntimeError):
    """A run that cannot go on, such as a loss that is not finite. The message names the last good checkpoint.

    Command-line programs print the message and exit with code 1."""


class TrainingPaused(Exception):
    """A run that was asked to stop and left a checkpoint. The message says how it goes on.

    Command-line programs print the message and exit with code 0."""
