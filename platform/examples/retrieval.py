"""Retrieval in pure Python: TF-IDF over the standard library's own documentation, hits against words to be read.

A question is a third of a function's first sentence; it is answered when one of the ``top_k`` chunks belongs to the module the
function is in. Larger chunks and more of them hit more often, and whoever reads them (a person, or a language model that is paid
by the word) has more to read: two outcomes, one preference (``retrieval.yaml``). The budget is the number of questions.
"""

import importlib
import inspect
import json
import math
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

MODULES = (
    "argparse", "ast", "base64", "bisect", "calendar", "collections", "colorsys", "configparser", "contextlib", "copy", "csv",
    "datetime", "difflib", "enum", "fractions", "functools", "glob", "gzip", "heapq", "html", "inspect", "io", "ipaddress",
    "itertools", "json", "locale", "logging", "math", "mimetypes", "numbers", "operator", "os", "pathlib", "pickle",
    "pprint", "queue", "random", "re", "sched", "secrets", "shelve", "shlex", "shutil", "socket", "statistics", "string",
    "struct", "tarfile", "tempfile", "textwrap", "threading", "time", "timeit", "token", "types", "urllib.parse", "uuid",
    "wave", "weakref", "zipfile",
)  # fmt: skip


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]{2,}", text.lower())


def documentation(name: str) -> list[str]:
    """What the public names of a module say of themselves."""
    module = importlib.import_module(name)
    found = (getattr(module, public) for public in dir(module) if not public.startswith("_"))
    own = [one for one in found if getattr(one, "__module__", None) == name]
    return [text for one in own if (text := inspect.getdoc(one))]


DOCUMENTS = {name: documentation(name) for name in MODULES}


def questions() -> list[tuple[list[str], str]]:
    """A third of the words of first sentences, with the module they are from; always the same."""
    draw = random.Random(0)
    asked = []
    for name, texts in DOCUMENTS.items():
        for text in texts:
            sentence = words(text.split("\n")[0])
            if len(sentence) >= 6:
                asked.append((draw.sample(sentence, len(sentence) // 3), name))
    draw.shuffle(asked)
    return asked


QUESTIONS = questions()


class Index:
    """Chunks of ``size`` words, with their TF-IDF weights of length 1."""

    def __init__(self, size: int, overlap: float, sublinear: bool) -> None:
        step = max(1, round(size * (1 - overlap)))
        chunks = [
            (name, body[start : start + size])
            for name, texts in DOCUMENTS.items()
            for body in [words(" ".join(texts))]
            for start in range(0, max(1, len(body)), step)
        ]
        self.names = [name for name, _ in chunks]
        counts = [Counter(body) for _, body in chunks]
        seen = Counter(word for count in counts for word in count)
        self.rarity = {word: math.log(len(chunks) / n) for word, n in seen.items()}
        self.entries: dict[str, list[tuple[int, float]]] = {}
        for number, count in enumerate(counts):
            weight = {w: (1 + math.log(n) if sublinear else n) * self.rarity[w] for w, n in count.items()}
            length = math.sqrt(sum(value**2 for value in weight.values())) or 1.0
            for word, value in weight.items():
                self.entries.setdefault(word, []).append((number, value / length))

    def best(self, question: list[str], k: int) -> list[str]:
        """The modules of the ``k`` chunks nearest to the question."""
        score: Counter[int] = Counter()
        for word in question:
            for number, value in self.entries.get(word, ()):
                score[number] += value * self.rarity[word]
        return [self.names[number] for number, _ in score.most_common(k)]


def main(trial: Any) -> None:
    """The function: ``run: {function: "retrieval:main"}``."""
    params = trial.params
    index = Index(params["chunk_words"], params["overlap"], params["term_weight"] == "sublinear")
    saved = Path(trial.resume_from) / "state.json" if trial.resume_from else None
    hits = json.loads(saved.read_text())["hits"] if saved else 0
    for asked in trial.steps():  # budget_from + 1 … budget_to
        question, name = QUESTIONS[(asked - 1) % len(QUESTIONS)]
        hits += name in index.best(question, params["top_k"])
        trial.report(asked, recall=hits / asked, words_read=params["top_k"] * params["chunk_words"])
    (Path(trial.save_to) / "state.json").write_text(json.dumps({"hits": hits}))
