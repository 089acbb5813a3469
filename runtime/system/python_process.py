"""How this package starts Python processes of its own: never with modules of the working directory.

`python -m` and `python -c` put the working directory first on the module search path, so a `json.py` in it would run in place of
the standard library's. A service may be started in any folder, also in one that others can write to.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["child_search_path", "module_command", "python_command"]


def python_command() -> list[str]:
    """Return the interpreter and its options, to be followed by `-m MODULE` or `-c PROGRAM`.

    `-P` keeps the working directory off the search path. PYTHONPATH and the user's site-packages count as they do in this process:
    where it ignores them (`-I`, `-E`, `-s`), the new process ignores them too.
    """
    options = [option for option, given in (("-E", sys.flags.ignore_environment), ("-s", sys.flags.no_user_site)) if given]
    return [sys.executable, "-P", *options]


def module_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module in a new Python process.

    Args:
        module: its full name.
        arguments: what the module finds in `sys.argv`.
    """
    return [*python_command(), "-m", module, *arguments]


def child_search_path() -> list[str]:
    """Return this process's `sys.path` without the working directory, as absolute paths.

    The working directory stays only where this package itself was imported from it.
    """
    package = Path(__file__).resolve().parents[3]
    try:
        here = Path.cwd().resolve()
    except FileNotFoundError:  # the folder was removed: nothing can be imported from it
        return [entry for entry in sys.path if os.path.isabs(entry)]
    entries = [Path(entry).absolute() for entry in sys.path]
    return [str(entry) for entry in entries if entry.resolve() != here or here == package]
