"""A page of the browser that reaches this machine only, and what went wrong on it."""

import re
from urllib.parse import urlsplit

HERE = "127.0.0.1"
LONG_S = 120
# Contexts of WebGL that the browser keeps alive; a lost or collected one is not.
COUNT_WEBGL = """
const known = new Set();
const get = HTMLCanvasElement.prototype.getContext;
HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
  const context = get.call(this, kind, ...rest);
  const held = [...known].some((one) => one.deref() === context);
  if (context && String(kind).startsWith("webgl") && !held) known.add(new WeakRef(context));
  return context;
};
window.liveWebgl = () => [...known].filter((one) => one.deref()?.isContextLost() === false).length;
"""


class Watched:
    """A page in which every other host is out of reach."""

    def __init__(self, browser, *, width: int = 1000, height: int = 1400) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": height})
        self.page.set_default_timeout(1000 * LONG_S)
        self.page.add_init_script(COUNT_WEBGL)
        self.outside: list[str] = []
        self.trouble: list[str] = []
        self.page.route("**/*", self._only_here)
        self.page.on("websocket", lambda socket: self._note(socket.url))
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.on("console", self._on_console)

    def _note(self, url: str) -> bool:
        parts = urlsplit(url)
        here = parts.hostname == HERE or parts.scheme in ("data", "blob")
        if not here:
            self.outside.append(url)
        return here

    def _only_here(self, route) -> None:
        if self._note(route.request.url):
            route.continue_()
        else:
            route.abort()

    def _on_console(self, message) -> None:
        if message.type == "error":
            self.trouble.append(f"{message.text} ({message.location.get('url', '')})")

    def press(self, label: str) -> None:
        self.page.get_by_role("button", name=label, exact=True).click()

    def fill(self, label: str, text: str) -> None:
        field = self.page.get_by_label(label, exact=True)
        field.fill(text)
        field.press("Tab")

    def told(self, text: str) -> None:
        self.page.locator(".mv-message", has_text=re.compile(text)).wait_for()

    def close(self) -> None:
        """Close the page; what went wrong on it fails the test."""
        self.page.close()
        assert self.outside == []
        assert self.trouble == []
