"""The recipe: one closed, typed configuration of a run, read from YAML with ``key.path=value`` overrides."""

from spintune.recipe.endpoint import EndpointSection
from spintune.recipe.evaluation import (
    HELDOUT,
    IFEVAL,
    MT_BENCH,
    MT_BENCH_ANSWERS,
    QUESTIONS,
    EvaluationSection,
    JudgeSection,
)
from spintune.recipe.generate import GenerateSection
from spintune.recipe.mixture import MixtureSection
from spintune.recipe.reading import every_key, keys_called, load_recipe, parse_recipe, recipe_schema, recipe_values
from spintune.recipe.recipe import DEFAULT_MODEL, HOLD_OUT, SYNTH, DataSection, HeldoutSection, Recipe
from spintune.recipe.section import AUTO_RATE, Section
from spintune.recipe.synthesis import SynthSection, TeacherSection
from spintune.recipe.training import IterationSettings, LoraSection, SftSection, SpinSection, TrainingSection
from spintune.recipe.yaml_files import read_yaml

__all__ = [
    "AUTO_RATE",
    "DEFAULT_MODEL",
    "HELDOUT",
    "HOLD_OUT",
    "IFEVAL",
    "MT_BENCH",
    "MT_BENCH_ANSWERS",
    "QUESTIONS",
    "SYNTH",
    "DataSection",
    "EndpointSection",
    "EvaluationSection",
    "GenerateSection",
    "HeldoutSection",
    "IterationSettings",
    "JudgeSection",
    "LoraSection",
    "MixtureSection",
    "Recipe",
    "Section",
    "SftSection",
    "SpinSection",
    "SynthSection",
    "TeacherSection",
    "TrainingSection",
    "every_key",
    "keys_called",
    "load_recipe",
    "parse_recipe",
    "read_yaml",
    "recipe_schema",
    "recipe_values",
]
