"""The normalization layers."""

from kerasnorm.layers.affine import Affine as Affine
from kerasnorm.layers.batch_norm import BatchNorm as BatchNorm
from kerasnorm.layers.cosine_norm import CosineNorm as CosineNorm
from kerasnorm.layers.data_dependent_init import data_init as data_init
from kerasnorm.layers.group_norm import GroupNorm as GroupNorm
from kerasnorm.layers.layer_norm import LayerNorm as LayerNorm
from kerasnorm.layers.recurrent import LayerNormGRUCell as LayerNormGRUCell
from kerasnorm.layers.recurrent import LayerNormLSTMCell as LayerNormLSTMCell
from kerasnorm.layers.recurrent import LayerNormSimpleRNNCell as LayerNormSimpleRNNCell
from kerasnorm.layers.weight_norm import WeightNorm as WeightNorm
