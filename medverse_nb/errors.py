"""Every error the package raises on purpose, under one base."""

import shlex
import sys


class MedverseError(Exception):
    """Base of all errors raised on purpose; the message says what to do."""


class InputError(MedverseError, ValueError):
    """A file, array or setting that cannot be used as given."""


class GeometryError(InputError):
    """An affine, shape or grid that makes no sense."""


class ContextError(InputError):
    """A context that cannot serve the request: empty, unlabelled or mismatched."""


class WeightsError(InputError):
    """A checkpoint that is unsafe, damaged or of another architecture."""


class OutputError(MedverseError, OSError):
    """A result that cannot be written where it was asked for."""


class Cancelled(MedverseError):
    """A run that was ended by the one who asked for it."""


class ClusterError(MedverseError, RuntimeError):
    """Workers that could not do what they were asked for."""


class NotBuiltYet(MedverseError, NotImplementedError):
    """Part of the public contract that an open issue still owes."""


def missing_extra(what: str, error: ModuleNotFoundError, extra: str) -> InputError:
    """Return the error that tells which extra to install for what was asked, and for which Python."""
    python = shlex.quote(sys.executable)
    return InputError(f'{what} needs {error.name}: {python} -m pip install "medverse_nb[{extra}]"')


def first_line(error: BaseException) -> str:
    """Return the first line of another library's message, cut to a readable length."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
