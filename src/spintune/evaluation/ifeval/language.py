"""The language of a text by langdetect (the port of Shuyo's 2010 detector), the same in every run.

langdetect draws random numbers without a seed, and orders its languages by a folder listing. Here both are fixed, in a
separate detector, so other users of langdetect in the process are not affected.
"""

from __future__ import annotations

import functools
import importlib
import importlib.resources
from typing import Any

from spintune.errors import MissingExtraError

# The 55 languages that langdetect 1.0.9 knows, ISO 639-1.
LANGUAGES = frozenset(
    "af ar bg bn ca cs cy da de el en es et fa fi fr gu he hi hr hu id it ja kn ko lt lv mk ml mr ne nl no pa "  # noqa: SIM905
    "pl pt ro ru sk sl so sq sv sw ta te th tl tr uk ur vi zh-cn zh-tw".split()
)

_SEED = 0


def detect(text: str) -> str | None:
    """The most likely of :data:`LANGUAGES`, or "unknown"; None for a text without letters.

    Raises MissingExtraError when langdetect is not installed.
    """
    factory, error = _detector()
    detector = factory.create()
    detector.append(text)
    try:
        return str(detector.detect())
    except error:
        return None


@functools.cache
def _detector() -> tuple[Any, type[Exception]]:
    """A detector factory with its language profiles (a second to load), and the error of a text without features."""
    try:
        langdetect = importlib.import_module("langdetect")
    except ImportError as error:
        raise MissingExtraError(
            "IFEval's language and letter-case instructions need langdetect, which is not installed; "
            "run: pip install 'spintune[eval]'"
        ) from error
    folder = importlib.resources.files("langdetect") / "profiles"
    profiles = sorted(folder.iterdir(), key=lambda file: file.name)
    factory = langdetect.DetectorFactory()
    factory.set_seed(_SEED)
    factory.load_json_profile([file.read_text("utf-8") for file in profiles if not file.name.startswith(".")])
    return factory, langdetect.LangDetectException
