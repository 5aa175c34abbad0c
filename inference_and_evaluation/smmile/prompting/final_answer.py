"""The final answer in a response with chain of thought."""

from __future__ import annotations

import re

# "Answer:" and "Final answer:", also in bold or italics, and with a full-width colon.
_MARK = re.compile(r"(?<![^\W_])(?:final\s+)?answer[*_\s]*[:\uff1a]", re.IGNORECASE)
_AROUND = " \t\r\n*_`"


def final_answer(response: str) -> str:
    """What follows the last "Answer:" or "Final answer:" in `response`, else its last line with text.

    Markup for bold around it is removed. A mark that nothing follows does not count.
    """
    before, *parts = _MARK.split(response)
    after = [text for text in (part.strip(_AROUND) for part in parts) if text]
    lines = [line for line in (line.strip(_AROUND) for line in before.splitlines()) if line]
    return after[-1] if after else lines[-1] if lines else response
