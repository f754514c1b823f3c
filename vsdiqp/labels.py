"""Names of files as tables and plots can show them, whatever they are called."""


def shown(name: str) -> str:
    """A file's name as text: bytes that are no UTF-8, which Python holds as lone surrogates, are spelled out."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def plotted(name: str) -> str:
    """The same for matplotlib, which would take what lies between two dollar signs for a formula."""
    return shown(name).replace("$", r"\$")
