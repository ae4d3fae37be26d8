"""The one exception that reaches the user as a sentence instead of a traceback."""


class UserError(Exception):
    """A mistake outside the program: one sentence that names the thing at fault and the remedy."""
