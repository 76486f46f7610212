"""The one sentence of a foreign exception that says what went wrong."""

from __future__ import annotations

import re

_COLOURS = re.compile(r"\x1b\[\d*m")
_LONGEST = 400


def reason(failure: BaseException) -> str:
    """What an exception says, without traces, colours and argument listings, as a sentence.

    Example:

    >>> reason(ValueError("Exception encountered when calling Dense.call().\\n\\nno such axis"))
    'no such axis.'
    """
    text = _COLOURS.sub("", str(failure))
    if text.lstrip().startswith("in user code:"):
        # AutoGraph prints the whole trace; its last "SomeError: ..." is what happened.
        text = re.split(r"\n\s*\w*(?:Error|Exception): ", text)[-1]
    text = re.sub(r"^\s*Exception encountered when calling [^\n]*\n", "", text)
    text = text.split("Arguments received by")[0]
    paragraph = text.strip().split("\n\n")[0]
    sentence = " ".join(paragraph.split())[:_LONGEST] or type(failure).__name__
    return sentence if sentence[-1] in ".!?" else f"{sentence}."
