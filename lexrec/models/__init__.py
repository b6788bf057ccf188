"""Sequence models: one readable file each."""

from lexrec.models._build import build_model as build_model
