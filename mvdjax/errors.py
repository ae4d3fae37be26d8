"""What reaches the user as a sentence instead of a traceback, and the exit codes beside 0, 1 (failed) and 2 (usage)."""

TRY_AGAIN = 75  # EX_TEMPFAIL: the same command, started again, goes on where the run was


class UserError(Exception):
    """A mistake outside the program: one sentence that names the thing at fault and the remedy."""
