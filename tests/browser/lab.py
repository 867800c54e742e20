"""JupyterLab on this machine alone: notebooks that are opened, run, looked at and asked."""

import ast
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
from jupyter_client import BlockingKernelClient
from playwright.sync_api import Error as PlaywrightError
from watched import HERE, LONG_S, Watched

TOKEN = "of-this-test"
STARTED_S = 60
AGAIN_S = 5
CLICK_MS = 5000


class Lab:
    """A server with a folder of notebooks; nothing of the user's own settings is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind((HERE, 0))
            self.port = free.getsockname()[1]
        settings = folder / "settings"
        news = settings / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
        news.parent.mkdir(parents=True)
        news.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
        places = {
            "JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime",
            "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
            "IPYTHONDIR": "ipython",
        }  # fmt: skip
        own = {name: str(folder / place) for name, place in places.items()}
        # A kernel of a test run is somebody's notebook all the same.
        kept = {name: text for name, text in os.environ.items() if name != "PYTEST_VERSION"}
        command = [
            sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ip={HERE}",
            f"--port={self.port}", f"--IdentityProvider.token={TOKEN}",
            f"--ServerApp.root_dir={folder}", "--LabApp.extension_manager=readonly",
        ]  # fmt: skip
        self.log = (folder / "log").open("w")
        self.server = subprocess.Popen(
            command, env=kept | own, stdout=self.log, stderr=subprocess.STDOUT
        )
        self._wait()

    def _wait(self) -> None:
        until = time.monotonic() + STARTED_S
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                self.get("/api/status")
                return
            time.sleep(0.2)
        raise TimeoutError((self.folder / "log").read_text(encoding="utf-8"))

    def get(self, path: str):
        """Return what the server answers."""
        request = urllib.request.Request(
            f"http://{HERE}:{self.port}{path}", headers={"Authorization": f"token {TOKEN}"}
        )
        with urllib.request.urlopen(request, timeout=LONG_S) as answer:
            return json.load(answer)

    def open(self, browser, name: str, cells: list[str], **size: int) -> "Notebook":
        """Write a notebook, open it and run its cells."""
        made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(made, self.folder / name)
        return Notebook(self, browser, name, **size)

    def close(self) -> None:
        """End the server and its kernels."""
        self.server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.server.wait(LONG_S)
        self.server.kill()
        self.log.close()


class Notebook(Watched):
    """A notebook in the browser, all its cells run, and its kernel."""

    def __init__(self, lab: Lab, browser, name: str, **size: int) -> None:
        super().__init__(browser, **size)
        self.path = lab.folder / name
        self.page.goto(f"http://{HERE}:{lab.port}/doc/tree/{name}?token={TOKEN}")
        self._idle()
        self._run_all()
        self._idle()
        (opened,) = [one for one in lab.get("/api/sessions") if one["path"] == name]
        file = lab.folder / "runtime" / f"kernel-{opened['kernel']['id']}.json"
        self.kernel = BlockingKernelClient(connection_file=str(file))
        self.kernel.load_connection_file()
        self.kernel.start_channels()
        self.kernel.wait_for_ready(timeout=LONG_S)
        if (wrong := self.page.locator("[data-mime-type*=error]")).count():
            raise AssertionError(wrong.first.inner_text())

    def _wait(self) -> None:
        """Let a little time pass, in which the page's requests are answered."""
        self.page.wait_for_timeout(100)

    def _idle(self) -> None:
        self.page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for()

    def _run_all(self) -> None:
        """Run all cells; asked before the kernel is quite there, Lab runs none, and is asked again."""
        prompts = self.page.locator(".jp-CodeCell .jp-InputArea-prompt")
        until = asked = time.monotonic()
        until += LONG_S
        while not prompts.last.inner_text().strip("[]: \n").isdigit():
            assert time.monotonic() < until, "the cells are not done"
            begun = any(text.strip("[]: \n") for text in prompts.all_inner_texts())
            self._choose_kernel()
            if not begun and time.monotonic() >= asked:
                with contextlib.suppress(
                    PlaywrightError
                ):  # a question came up that covers the menu
                    for item in ("Run", "Run All Cells"):
                        entry = self.page.get_by_role("menuitem", name=item, exact=True)
                        entry.click(timeout=CLICK_MS)
                    asked = time.monotonic() + AGAIN_S
            self._wait()

    def _choose_kernel(self) -> None:
        """Take the kernel that Lab proposes, where a slow start makes it ask for one."""
        dialog = self.page.locator(".jp-Dialog")
        if dialog.count():
            told = dialog.first.inner_text()
            assert "kernel" in told.lower(), f"JupyterLab asks something else: {told}"
            dialog.first.locator(".jp-mod-accept").click()

    def run_again(self, cell: int) -> None:
        """Run a cell once more and wait for its end."""
        prompt = self.page.locator(".jp-CodeCell .jp-InputArea-prompt").nth(cell)
        before = prompt.inner_text()
        self.page.locator(".jp-CodeCell .jp-InputArea-editor").nth(cell).click()
        self.page.keyboard.press("Control+Enter")
        until = time.monotonic() + LONG_S
        while prompt.inner_text() == before or "*" in prompt.inner_text():
            assert time.monotonic() < until, "the cell is not done"
            self._wait()

    def save(self) -> int:
        """Save the notebook and return its size in bytes."""
        before = self.path.stat().st_mtime_ns
        self.page.get_by_title("Save and create checkpoint").click()
        until = time.monotonic() + LONG_S
        while self.path.stat().st_mtime_ns == before:
            assert time.monotonic() < until, "the notebook was not saved"
            self._wait()
        return self.path.stat().st_size

    def ask(self, expression: str):
        """Return what an expression of plain values is in the kernel."""
        reply = self.kernel.execute_interactive(
            "", user_expressions={"answer": expression}, store_history=False, timeout=LONG_S
        )
        answer = reply["content"]["user_expressions"]["answer"]
        assert answer["status"] == "ok", answer
        return ast.literal_eval(answer["data"]["text/plain"])

    def until(self, expression: str) -> None:
        """Wait until an expression is true in the kernel."""
        end = time.monotonic() + LONG_S / 4
        while not self.ask(f"bool({expression})"):
            assert time.monotonic() < end, f"{expression} does not come true"
            self._wait()

    def do(self, statement: str) -> None:
        """Run a statement in the kernel."""
        reply = self.kernel.execute_interactive(statement, store_history=False, timeout=LONG_S)
        assert reply["content"]["status"] == "ok", reply["content"]

    def plane(self, axis: int, panel: int = 0, canvas: int = 0):
        """Return a plane of a panel of the notebook's first, second, ... canvas."""
        return self.page.locator(".mv-view").nth(canvas).locator(".mv-plane").nth(3 * panel + axis)

    def point(self, shape, axis: int, right: float, up: float, **which: int):
        """Return where a shown voxel's middle is on the page, for planes of this shape."""
        plane = self.plane(axis, **which)
        plane.scroll_into_view_if_needed()
        box = plane.bounding_box()
        across, above = (n for a, n in enumerate(shape) if a != axis)
        x = box["x"] + (right + 0.5) / across * box["width"]
        return x, box["y"] + (1 - (up + 0.5) / above) * box["height"]

    def close(self) -> None:
        """Close the page and let go of the kernel; what went wrong fails the test."""
        self.kernel.stop_channels()
        super().close()
