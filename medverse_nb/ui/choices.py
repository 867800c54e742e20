"""What several explorers let a user choose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import traitlets

from ..errors import InputError


class ClassChoice(traitlets.HasTraits):
    """A state that shows one class at a time.

    Traits
    ------
    class_name : one of `class_names`; "image" for an image task.
    """

    class_names: Sequence[str]
    class_name = traitlets.Unicode()

    @traitlets.validate("class_name")
    def _a_class(self, proposal: Any) -> str:
        name: str = proposal["value"]
        if name not in self.class_names:
            raise InputError(f"no class {name!r}; there are {', '.join(self.class_names)}")
        return name
