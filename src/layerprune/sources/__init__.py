"""Models and batches that a short text names: a model of a library, a file of text, a folder of images, arrays.

The texts are those of the command line and of recipes.
"""

# pyright: reportUnusedImport=false
from layerprune.sources.data import DATA_FORMS, DataSettings, load_data
from layerprune.sources.identity import check_source, identity_of
from layerprune.sources.models import MODEL_FORMS, ModelSource, load_model, load_skeleton, source_of
from layerprune.sources.packages import package
