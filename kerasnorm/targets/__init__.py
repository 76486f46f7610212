"""What a BatchNorm can become: each target is one object, in a file of its own.

A new target is a new file, its tests, and its line in the table below.
"""

from kerasnorm.targets.cosine import CosineTarget
from kerasnorm.targets.layer import LayerTarget
from kerasnorm.targets.target import Target
from kerasnorm.targets.weight import WeightTarget

TARGETS: dict[str, Target] = {
    target.name: target for target in (WeightTarget(), LayerTarget(), CosineTarget())
}
