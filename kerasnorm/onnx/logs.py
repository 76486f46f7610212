"""What TensorFlow and tf2onnx print while they convert, held back or collected."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator

from kerasnorm.onnx.error_text import reason

_TENSORFLOW_LOG_LINE = re.compile(rb"[IWE]\d{4} \d\d:|WARNING: All log messages before absl")


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Holds back the log of TensorFlow and tf2onnx; all else printed meanwhile is kept."""
    with _silent_loggers(), _filtered_stderr(), warnings.catch_warnings():
        # These are about the converters' own old idioms, not about the model.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


@contextlib.contextmanager
def collected_errors(texts: list[str]) -> Iterator[None]:
    """Inside the block, the errors that tf2onnx logs are added to a list, each as one text."""

    class Collector(logging.Handler):
        def emit(self, record):
            cause = f" {reason(record.exc_info[1])}" if record.exc_info else ""
            texts.append(record.getMessage().partition("\n")[0] + cause)

    collector = Collector(logging.ERROR)
    logger = logging.getLogger("tf2onnx")
    logger.addHandler(collector)
    try:
        yield
    finally:
        logger.removeHandler(collector)


@contextlib.contextmanager
def _silent_loggers() -> Iterator[None]:
    converter, tensorflow = logging.getLogger("tf2onnx"), logging.getLogger("tensorflow")
    propagate, level = converter.propagate, tensorflow.level
    null = logging.NullHandler()
    converter.addHandler(null)  # without any handler, Python prints to stderr as a last resort
    converter.propagate = False  # errors stay enabled, for those who collect them
    tensorflow.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        converter.removeHandler(null)
        converter.propagate = propagate
        tensorflow.setLevel(level)


@contextlib.contextmanager
def _filtered_stderr() -> Iterator[None]:
    # TensorFlow's C++ side writes to the file descriptor, at a log level fixed when imported.
    try:
        saved = os.dup(2)
    except OSError:  # a process without a standard error stream
        yield
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            held.seek(0)
            for line in held:
                if not _TENSORFLOW_LOG_LINE.match(line):
                    os.write(2, line)
