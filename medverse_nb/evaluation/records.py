"""Tables as plain JSON values."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd


def records_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return rows as JSON values, the index among them; what is not a number becomes null."""
    records: list[dict[str, Any]] = json.loads(table.reset_index().to_json(orient="records"))
    return records
