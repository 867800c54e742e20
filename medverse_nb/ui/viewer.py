"""What shows itself in a notebook, as a widget with a picture or as a picture alone."""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from typing import Any

import xarray as xr

from ..errors import InputError
from .slices import SliceState


class Shown(ABC):
    """Something that the last line of a notebook cell shows.

    With a widget it carries a picture too, for code hosts and all else that runs no widget.

    Parameters
    ----------
    widget : None for a still picture.
    backend : what draws it.
    """

    def __init__(self, widget: Any, backend: str) -> None:
        self.widget = widget
        self.backend = backend
        self.closed = False

    @abstractmethod
    def picture(self) -> bytes:
        """Return a PNG of what is shown now."""

    def close(self) -> None:
        """End the widget, here and in the browser; may be called twice."""
        self.closed = True
        if self.widget is not None:
            self.widget.close()

    def _repr_mimebundle_(self, **_asked: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        data: dict[str, Any] = {}
        metadata: dict[str, Any] = {}
        if self.widget is not None and not self.closed:
            shown = self.widget._repr_mimebundle_()
            data, metadata = shown if isinstance(shown, tuple) else (shown or {}, {})
        picture = base64.b64encode(self.picture()).decode("ascii")
        return {**data, "image/png": picture, "text/plain": repr(self)}, metadata


class Explorer(Shown):
    """Shows a state of its own kind, with controls; a subclass says how it is drawn.

    Parameters
    ----------
    state : what is shown; changing it changes the explorer.
    """

    def __init__(self, state: Any, widget: Any, backend: str) -> None:
        super().__init__(widget, backend)
        self.state = state


class Viewer(Shown):
    """A view of a state: what `view` returns.

    Parameters
    ----------
    state : what is shown; changing it changes the view.
    """

    def __init__(self, state: SliceState, widget: Any = None, backend: str = "static") -> None:
        super().__init__(widget, backend)
        self.state = state

    @property
    def mask(self) -> xr.DataArray:
        """The mask as it has been drawn by now, on the volume's own grid; a copy."""
        if self.state.editor is None:
            raise InputError("this view has no mask to draw on; open it with edit=True")
        mask: xr.DataArray = self.state.editor.mask
        return mask

    def picture(self) -> bytes:
        """Return a PNG of the state as it is now."""
        from .static import draw_scene, to_png

        state = self.state
        figure = draw_scene(
            state.scene,
            state.cursor,
            opacity=state.opacity,
            boxes=state.boxes,
            selected=state.selected,
            crosshair=self.widget is not None,
        )
        return to_png(figure)

    def __repr__(self) -> str:
        titles = ", ".join(panel.title for panel in self.state.scene.panels)
        return f"<Viewer of {titles}: {self.backend}>"
