"""What a key of a TOML file may hold, in words: for documents, and for the lists that commands print."""

from __future__ import annotations

import json
import math
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def allowed_words(field: FieldInfo) -> str:
    """What a key may hold: its type and its bounds.

    >>> from shared.base.settings import Settings
    >>> allowed_words(Settings.model_fields["rounds"]), allowed_words(Settings.model_fields["simulation"])
    ('whole number, 0 to 10,000', 'true or false')
    """
    found = {name: getattr(rule, name) for rule in field.metadata for name in ("ge", "gt", "le", "lt") if hasattr(rule, name)}
    bounds = {name: _number(bound) for name, bound in found.items() if bound is not None}
    if {"ge", "le"} <= bounds.keys():
        said = [f"{bounds['ge']} to {bounds['le']}"]
    else:
        words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
        said = [f"{words[name]} {bound}" for name, bound in bounds.items()]
    return ", ".join([_words(field.annotation), *said])


def _number(bound: float) -> str:
    """As a person writes it: 2^53 and 10,000 instead of 9.0072e+15 and 1e+04."""
    power = math.log2(bound) if bound >= 1 << 20 else 0.5
    if power.is_integer():
        return f"2^{power:.0f}"
    return f"{bound:,.0f}" if bound >= 1000 and float(bound).is_integer() else f"{bound:g}"


def _words(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _words(inner[0])
    if origin in (Union, types.UnionType):
        words = dict.fromkeys(_words(one) for one in inner if one is not type(None))
        return " or ".join(words)
    if origin is Literal:
        return " or ".join(f"`{json.dumps(one)}`" for one in inner)
    if origin is tuple:
        return f"list of {_words(inner[0])}s"
    if origin is dict or (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return "table"
    return {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path"}.get(kind, "text")
