"""The one exception users are meant to read."""


class DiqpError(ValueError):
    """Bad input or a missing requirement: the text says what was given, what is accepted and what to do.

    The text carries no ``diqp.Restore:`` prefix; the plugin and the command line put their own name before it.
    """


class BackendError(DiqpError):
    """A backend that looked usable cannot run here after all; ``backend="auto"`` goes on to the next one."""
