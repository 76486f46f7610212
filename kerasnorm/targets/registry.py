"""The targets by name.

A new target is a new file, its tests, its line here and its words in `targets.names`.
"""

from kerasnorm.targets.cosine import CosineTarget
from kerasnorm.targets.group import GroupTarget
from kerasnorm.targets.layer import LayerTarget
from kerasnorm.targets.target import Target
from kerasnorm.targets.weight import WeightTarget

TARGETS: dict[str, Target] = {
    target.name: target for target in (WeightTarget(), LayerTarget(), GroupTarget(), CosineTarget())
}
