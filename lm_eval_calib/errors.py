"""The errors of a user's mistake: the command line prints them without a traceback."""


class CalibrationError(Exception):
    """Something the user can mend.

    The message names the argument, what was expected, what came, and the remedy.
    """


class CalibrationValueError(CalibrationError, ValueError):
    """An argument or a document with a value that no result can be computed from."""


class MissingExtraError(CalibrationError, ImportError):
    """A feature whose optional dependencies are not installed."""

    def __init__(self, feature: str, extra: str, cause: ImportError) -> None:
        super().__init__(f"{feature} needs the extra '{extra}' ({cause}): pip install 'lm-eval-calib[{extra}]'")
