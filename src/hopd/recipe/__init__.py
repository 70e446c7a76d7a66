"""Holds the typed configuration of a run as plain data, read from YAML or made in Python.

It loads no torch and knows no model, no engine and no file but the recipe itself.
"""

from hopd.recipe.decoding import Decoding, NativeDecoding, VllmDecoding, VllmServers
from hopd.recipe.models import (
    AdaptersOff,
    LoraSection,
    ModelSource,
    OwnPrompt,
    ServerSource,
    TeacherModel,
    TeacherPlugin,
    TeacherSource,
)
from hopd.recipe.recipe import Recipe
from hopd.recipe.section import PluginSection, Section
from hopd.recipe.sections import CheckpointSection, EvaluationSection, RolloutSection, TrainingSection
from hopd.recipe.servers import Servers
from hopd.recipe.tasks import AdditionSource, FileSource, GymSource, TaskPlugin, TaskSource

__all__ = [
    "AdaptersOff",
    "AdditionSource",
    "CheckpointSection",
    "Decoding",
    "EvaluationSection",
    "FileSource",
    "GymSource",
    "LoraSection",
    "ModelSource",
    "NativeDecoding",
    "OwnPrompt",
    "PluginSection",
    "Recipe",
    "RolloutSection",
    "Section",
    "ServerSource",
    "Servers",
    "TaskPlugin",
    "TaskSource",
    "TeacherModel",
    "TeacherPlugin",
    "TeacherSource",
    "TrainingSection",
    "VllmDecoding",
    "VllmServers",
]
