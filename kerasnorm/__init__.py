"""Take BatchNorm out of a trained Keras model, keep what the model knows, ship it as ONNX."""

from typing import TYPE_CHECKING

from kerasnorm.cli.quiet_start import is_command_line as _is_command_line
from kerasnorm.errors import ExportError as ExportError
from kerasnorm.errors import FidelityWarning as FidelityWarning
from kerasnorm.errors import KerasNormError as KerasNormError
from kerasnorm.errors import LoadError as LoadError
from kerasnorm.errors import SwapError as SwapError
from kerasnorm.version import __version__ as __version__

# The command line answers to wrong requests at once: its commands import what they use.
if TYPE_CHECKING or not _is_command_line():
    from kerasnorm import layers as layers
    from kerasnorm.distillation.distill import distill as distill
    from kerasnorm.fit.batch_statistics import estimate_statistics as estimate_statistics
    from kerasnorm.layers import Affine as Affine
    from kerasnorm.layers import BatchNorm as BatchNorm
    from kerasnorm.layers import CosineNorm as CosineNorm
    from kerasnorm.layers import GroupNorm as GroupNorm
    from kerasnorm.layers import LayerNorm as LayerNorm
    from kerasnorm.layers import WeightNorm as WeightNorm
    from kerasnorm.layers import data_init as data_init
    from kerasnorm.loading import load_model as load_model
    from kerasnorm.loading import load_report as load_report
    from kerasnorm.onnx import export_onnx as export_onnx
    from kerasnorm.swap.fold import fold_norms as fold_norms
    from kerasnorm.swap.swap import inspect_norms as inspect_norms
    from kerasnorm.swap.swap import swap_norms as swap_norms
