"""The app's server: Voila shows one notebook, on this machine only and to who has the token."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import tempfile
import webbrowser
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from .errors import InputError, missing_extra
from .model.device import choose_device
from .model.registry import find_weights
from .ui.front_end import installed

HOST = "127.0.0.1"
NAME = "medverse_nb"  # of the template and of the kernel
NEEDED = ("voila", "ipywidgets", "anywidget")
TEMPLATE = Path(__file__).parent / "ui" / "app.html.j2"


def serve(
    folder: Path,
    *,
    port: int = 0,
    browser: bool = True,
    model: str = "medverse-tiny",
    device: str = "auto",
    tell: Callable[[str], object] = print,
) -> None:
    """Serve the app until it is interrupted.

    Parameters
    ----------
    folder : all that the app reads and writes is below it.
    port : 0 for any that is free.
    browser : open one.
    tell : called with the address, token included, once there is an answer at it.

    Raises
    ------
    InputError : no such folder or device, a package that is missing, or a port that is taken.
    WeightsError : no such model.
    """
    check_packages()
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}")
    find_weights(model)
    choose_device(device)
    # Only its owner can look into it, which keeps the token from other users of the machine.
    with tempfile.TemporaryDirectory(prefix="medverse_nb_app_") as place:
        notebook = lay_out(Path(place), folder.resolve(), model=model, device=device)
        _run_voila(notebook, Path(place), port, browser, tell)


def check_packages() -> None:
    """Refuse to start without the packages of the extra `jupyter`.

    Raises
    ------
    InputError : one is not installed.
    """
    for package in NEEDED:
        if not installed(package):
            raise missing_extra("the app", ModuleNotFoundError(name=package), "jupyter")


def lay_out(place: Path, folder: Path, *, model: str, device: str) -> Path:
    """Write the notebook, our template and our kernel to a place of their own.

    Returns
    -------
    The notebook; what Jupyter has to find lies in `jupyter` beside its folder.
    """
    template = place / "jupyter" / "voila" / "templates" / NAME
    kernel = place / "jupyter" / "kernels" / NAME
    notebook = place / "notebook" / "app.ipynb"
    for parent in (template, kernel, notebook.parent):
        parent.mkdir(parents=True)
    shutil.copyfile(TEMPLATE, template / "index.html.j2")
    _write(template / "conf.json", {"base_template": "lab"})
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    command.append("--IPKernelApp.log_level=ERROR")
    _write(
        kernel / "kernel.json",
        {"argv": command, "display_name": "medverse_nb", "language": "python"},
    )
    code = (
        "from medverse_nb.ui.app_page import open_app\n"
        f"open_app({str(folder)!r}, model={model!r}, device={device!r})"
    )
    cell: dict[str, Any] = {
        "cell_type": "code", "id": "app", "metadata": {}, "source": code, "outputs": [],
        "execution_count": None,
    }  # fmt: skip
    about = {
        "title": "medverse_nb",
        "kernelspec": {"name": NAME, "display_name": "medverse_nb", "language": "python"},
    }
    _write(notebook, {"cells": [cell], "metadata": about, "nbformat": 4, "nbformat_minor": 5})
    return notebook


def options_of(place: Path, token: str, port: int) -> list[str]:
    """Return what Voila is told; it reads no other settings of its own."""
    return [
        "--Voila.ip=" + HOST,
        f"--Voila.port={port}",
        "--Voila.port_retries=0",
        f"--Voila.token={token}",
        f"--Voila.config_file_paths={place / 'jupyter'}",
        f"--VoilaConfiguration.template={NAME}",
        "--VoilaConfiguration.theme=light",
        "--VoilaConfiguration.show_tracebacks=False",
        "--Voila.log_level=ERROR",
    ]


def _run_voila(
    notebook: Path, place: Path, port: int, browser: bool, tell: Callable[[str], object]
) -> None:
    paths = (str(place / "jupyter"), os.environ.get("JUPYTER_PATH", ""))
    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, paths))
    import voila.app

    token = secrets.token_urlsafe(24)
    chosen = port or free_port()
    if port and not is_free(port):
        raise InputError(f"port {port} is taken; give another one, or none for any that is free")

    class Server(voila.app.Voila):  # type: ignore[misc]
        """Tells the address once it listens, at the point where Voila would open a browser."""

        def launch_browser(self) -> None:
            address = f"http://{HOST}:{self.port}/?token={token}"
            tell(address)
            if browser:
                webbrowser.open(_page_leading_to(address, place).as_uri())

    server = Server()
    server.initialize([str(notebook), *options_of(place, token, chosen)])
    server.open_browser = True
    server.start()


def _page_leading_to(address: str, place: Path) -> Path:
    """Return a page that leads to the address: a command line would show others the token."""
    page = place / "open.html"
    page.write_text(
        f'<!doctype html><meta http-equiv="refresh" content="0; url={escape(address)}">',
        encoding="utf-8",
    )
    return page


def is_free(port: int) -> bool:
    """Whether a server could listen at a port of this machine."""
    import socket

    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """Return a port that nobody listens at now."""
    import socket

    with socket.socket() as trial:
        trial.bind((HOST, 0))
        return int(trial.getsockname()[1])


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
