"""Take BatchNorm out of a trained Keras model, keep what the model knows, ship it as ONNX."""

from kerasnorm import layers as layers
from kerasnorm.errors import ExportError as ExportError
from kerasnorm.errors import KerasNormError as KerasNormError
from kerasnorm.errors import LoadError as LoadError
from kerasnorm.errors import SwapError as SwapError
from kerasnorm.layers import Affine as Affine
from kerasnorm.layers import BatchNorm as BatchNorm
from kerasnorm.layers import CosineNorm as CosineNorm
from kerasnorm.layers import LayerNorm as LayerNorm
from kerasnorm.layers import WeightNorm as WeightNorm
from kerasnorm.version import __version__ as __version__
