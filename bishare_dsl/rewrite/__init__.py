"""Rewriting: a region's forward as a graph, passes over it, and its installation in the model."""

from bishare_dsl.rewrite.adapt import unadapt
from bishare_dsl.rewrite.owned import OwnedTensors
from bishare_dsl.rewrite.parts import AdapterParts, AdapterRoot
