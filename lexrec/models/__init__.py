"""Sequence models: one readable file each."""

from lexrec.models._build import build_model as build_model
from lexrec.models._build import model_width as model_width
