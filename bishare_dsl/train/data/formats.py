"""The formats of rows: known by their columns, checked for every row."""

from __future__ import annotations

from typing import Literal

Format = Literal["alpaca", "prompt-completion", "messages", "text"]
