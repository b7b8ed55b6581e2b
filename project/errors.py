"""The one exception that is shown to the user as a single line."""


class UserError(ValueError):
    """A mistake that the user can fix.

    The message says what is wrong, where (the key or the file), and how to fix it. The command line prints it as
    one line and exits with code 2; from Python it is an ordinary `ValueError`.
    """
