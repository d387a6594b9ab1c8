"""Stand-ins for removed modules and tensors, with which the other modules run unchanged.

A dropped tensor has no shape and no values. The merge that reads it leaves it out; other readers raise an error.
"""

# pyright: reportUnusedImport=false
from layerprune.stand_ins.class_members import kept_members, parts_read
from layerprune.stand_ins.dropped_tensor import (
    STAND_INS,
    DroppedBranch,
    DroppedTensor,
    PassThrough,
    SkipsDropped,
    dropped,
    dropped_tensors,
    watching_merges,
)
from layerprune.stand_ins.never_run import NeverRun
from layerprune.stand_ins.removed_attributes import REMOVED_VALUE, plain, shown
