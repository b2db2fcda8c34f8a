"""The one exception that is meant for the person at the terminal."""


class UserError(ValueError):
    """A mistake that the user can mend: bad recipe, bad flag, bad folder, bad file.

    The message says what was given, what is allowed and what to type instead. The command line
    prints it without a traceback and exits with status 2; everything else is a bug and keeps its traceback.
    """


def did_you_mean(given: str, allowed: list[str] | tuple[str, ...]) -> str:
    """A hint for a mistyped name: `" Did you mean 'resnet18'?"`, or an empty string."""
    import difflib

    close = difflib.get_close_matches(given, allowed, n=1)
    return f" Did you mean '{close[0]}'?" if close else ""
