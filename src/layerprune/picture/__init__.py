"""The picture of a network: its module tree, groups, merges and plan, laid out and drawn as SVG."""

# pyright: reportUnusedImport=false
from layerprune.picture.assets import SCRIPT, STYLE
from layerprune.picture.build import picture_of
from layerprune.picture.figure import to_html
from layerprune.picture.impact_scale import NUM_CLASSES, ImpactScale, impact_scale
from layerprune.picture.records import Block, Box, Cells, Edge, Picture, PictureGroup, Region, Repeat, groups_in
from layerprune.picture.svg import to_svg
