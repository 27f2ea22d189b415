"""The corpus inside the package: 400 sentences in 11 locales, ten intents, MASSIVE's format, CC0."""

from functools import partial
from hashlib import sha256
from pathlib import Path

from langmerge.tasks.massive import load_file, locale_files
from langmerge.tasks.task import Task

NAME = "demo:intent"

INTENTS: tuple[str, ...] = (
    "alarm_set",
    "calendar_add",
    "cooking_recipe",
    "light_control",
    "list_add",
    "message_send",
    "music_play",
    "news_query",
    "transport_query",
    "weather_query",
)


def embedded_task() -> Task:
    """The demo's task; its revision is a hash of the corpus."""
    files = locale_files(Path(__file__).with_name("corpus"))
    digest = sha256()
    for locale, path in files.items():
        digest.update(f"{locale}\n".encode())
        digest.update(path.read_bytes())
    load = partial(load_file, task=NAME, files=files, labels=INTENTS, key="intent")
    return Task(NAME, INTENTS, tuple(files), f"sha256:{digest.hexdigest()}", load)
