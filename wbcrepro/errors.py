"""Errors that a user can act on. Each carries the exit code that the command line returns.

A message names the file or thing, what was expected, what was got and the next step.
"""


class WbcreproError(Exception):
    """Base of every error that is reported without a traceback."""

    exit_code = 1


class UsageError(WbcreproError):
    """The request itself is wrong: an unknown name, an impossible combination of options."""

    exit_code = 2


class DataMissing(WbcreproError):
    """Images, weights or label files that the request needs are not there."""

    exit_code = 3


class CellsMissing(WbcreproError):
    """Cells (results) that the request builds on have not been run yet."""

    exit_code = 4


class Locked(WbcreproError):
    """Another process is running the same cell."""

    exit_code = 5
