"""Decoding parameters in pure Python: a model of characters completes words, and the majority of some draws is its answer.

The model is an n-gram over the standard library's own documentation. A problem is a word of it with the characters before; it
is solved when most of ``samples`` completions, drawn at a temperature from the likeliest ``top_p`` of the probability, are the
word. Drawing more is right more often and costs more characters: two outcomes, one preference (``decoding.yaml``). The budget
is the number of problems; ``right`` counts those that were solved, so its noise falls as the budget grows.
"""

import json
import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from retrieval import DOCUMENTS, words

LONGEST = 12
TEXT = [word for texts in DOCUMENTS.values() for text in texts for word in words(text)]
HELD_OUT = range(0, len(TEXT) - 3, 37)  # the places of the problems; the model does not learn there


def counts(context: int) -> dict[str, Counter[str]]:
    """How often each character follows each context of so many characters."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    problems = {place + 2 for place in HELD_OUT}
    text = " ".join(word for place, word in enumerate(TEXT) if place not in problems) + " "
    for end in range(context, len(text)):
        found[text[end - context : end]][text[end]] += 1
    return found


def nucleus(seen: Counter[str], temperature: float, top_p: float) -> tuple[list[str], list[float]]:
    """The likeliest characters that together have ``top_p``, with their weights at the temperature."""
    whole, kept, reached = sum(seen.values()), [], 0.0
    for character, n in seen.most_common():
        kept.append((character, (n / whole) ** (1 / temperature)))
        reached += n / whole
        if reached >= top_p:
            break
    return [character for character, _ in kept], [weight for _, weight in kept]


def drawn(model: dict[str, Counter[str]], prompt: str, params: dict[str, Any], draw: random.Random) -> str:
    """One completion up to the end of the word; the model backs off to a shorter context where it must."""
    said = prompt
    while len(said) - len(prompt) < LONGEST:
        seen = model.get(said[-params["context"] :])
        if not seen:
            break
        said += draw.choices(*nucleus(seen, params["temperature"], params["top_p"]))[0]
        if said[-1] == " ":
            break
    return said[len(prompt) :].rstrip()


def main(trial: Any) -> None:
    """The function: ``run: {function: "decoding:main"}``."""
    params, model = trial.params, counts(trial.params["context"])
    saved = Path(trial.resume_from) / "state.json" if trial.resume_from else None
    right, spent = json.loads(saved.read_text()) if saved else (0, 0)
    for number in trial.steps():
        place = HELD_OUT[number * 7919 % len(HELD_OUT)]
        word, draw = TEXT[place + 2], random.Random(f"{trial.seed}/{number}")
        prompt = " ".join(TEXT[place : place + 2]) + " " + word[: len(word) // 2]
        answers = [drawn(model, prompt, params, draw) for _ in range(params["samples"])]
        right += Counter(answers).most_common(1)[0][0] == word[len(word) // 2 :]
        spent += sum(map(len, answers)) + len(answers)
        trial.report(number, right=right / number, characters=spent / number)
    (Path(trial.save_to) / "state.json").write_text(json.dumps([right, spent]))
