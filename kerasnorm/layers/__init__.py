"""The normalization layers."""

from kerasnorm.layers.affine import Affine as Affine
from kerasnorm.layers.weight_norm import WeightNorm as WeightNorm
