"""What a cell holds where a value is missing, unless a source declares other words (`missing`)."""

from __future__ import annotations

USUAL_MISSING = (
    *("\\N", "NULL", "Null", "null", "<null>", "(null)", "NaN", "NAN", "nan", "-nan", "None", "<NA>", "NA", "N/A", "n/a", "#N/A"),
    *("NaT", "undefined", "0000-00-00", "0000-00-00 00:00:00"),
)
"""What programs write for a value that is not there."""
