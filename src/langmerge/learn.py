"""`lm.learn`: what learns from data, under one name. The parts live in `langmerge.learned` and `langmerge.adapting`."""

from langmerge.adapters.lora import Factors
from langmerge.adapting import Adapted, Decision, Problem, Resident, adapt, decide
from langmerge.learned.adamerging import Learned, TextStream, learn
from langmerge.learned.bounds import Bounds
from langmerge.learned.deltas import Deltas, HeldDeltas, LoraDeltas, MappedDeltas
from langmerge.learned.groups import Grouping, grouping
from langmerge.learned.lora import lora_deltas
from langmerge.learned.objectives import Composed, Objective, entropy, infomax, teacher
from langmerge.learned.settings import PRESETS, Settings, settings_of

__all__ = [
    "PRESETS",
    "Adapted",
    "Bounds",
    "Composed",
    "Decision",
    "Deltas",
    "Factors",
    "Grouping",
    "HeldDeltas",
    "Learned",
    "LoraDeltas",
    "MappedDeltas",
    "Objective",
    "Problem",
    "Resident",
    "Settings",
    "TextStream",
    "adapt",
    "decide",
    "entropy",
    "grouping",
    "infomax",
    "learn",
    "lora_deltas",
    "settings_of",
    "teacher",
]
