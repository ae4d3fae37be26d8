"""What reaches the user as a sentence instead of a traceback, and the exit codes beside 0, 1 (failed) and 2 (usage)."""

TRY_AGAIN = 75  # EX_TEMPFAIL: the same command, started again, goes on where the run was
INTERRUPTED = 130  # by Ctrl-C, as shells count it


class UserError(Exception):
    """A mistake outside the program: one sentence that names the thing at fault and the remedy."""


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """A run that was told to stop, and has saved."""

    def __init__(self, text: str, code: int) -> None:
        """`code` is the exit code."""
        super().__init__(text)
        self.code = code
