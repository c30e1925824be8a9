"""The value of a wrong setting and its remedy, from jsonargparse's message."""

from __future__ import annotations

import inspect
import re
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from pkgutil import resolve_name
from textwrap import shorten

from cli.missing_classes import missing_class

KINDS = {"bool": "true or false", "float": "a number", "int": "a whole number", "NoneType": "null"}
KINDS |= {"list": "a list", "tuple": "a list", "dict": "a mapping"}
# what to give for settings whose type says too little
FORMS = {
    "seed_everything": "a whole number",
    "image_size": "a whole number or [height, width]",
    "image_shape": "[channels, height, width]",
}
# our own errors: value; reason
REFUSED = r"'([^']+)'; (.+)$"

CLASS_ERRORS = [
    (
        r"Not a valid subclass of \w+\. Got value: (.*?)\s*(?:Subclass types|$)",
        "give class_path, and its settings inside init_args",
    ),
    (r"Expected '(\S+)' to be a subclass of (.+?)\.?$", "it is not one of {1}; give one"),
    (r"Expected an instantiatable class, but (\S+) is abstract", "it is abstract; give a class that derives from it"),
    (r"Unexpected import path format: (.*)", "give an import path, such as package.module.Class"),
    (r"Expected a dot import path string:\s*()$", "give its import path, such as package.module.Class"),
    # PyTorch's own has no setting for its metric
    (r"Multiple subclasses with name (ReduceLROnPlateau)", "give pytorch_lightning.cli.ReduceLROnPlateau"),
    (
        r"Multiple subclasses with name (\w+)\. .*ambiguity: (.+?)\.?$",
        "several classes have this name; give one of {1}",
    ),
    (r"Path is not a file: '(.*)'", "this is not a file; give the path of a YAML file"),
    (r"Invalid content in sub-config file (\S+): (.*)", "give a YAML file of settings ({1})"),
    (r"(.*codec can't decode.*)", "the file is not text in UTF-8; give a YAML file or a class"),
]


def value_and_remedy(name: str, text: str, chain: list[str]) -> str:
    """Value and remedy of a setting of a wrong type.

    Args:
        name: full name of the setting.
        text: jsonargparse's message about the setting.
        chain: messages of the error and of its causes; the last one is the first cause.
    """
    if path := re.search(r"File does not exist: '(.*)'", text):
        return f"got {path[1]!r}; no such file, give the path of a YAML file"
    if refused := re.search(REFUSED, chain[-1]) or re.search(REFUSED, text, re.MULTILINE):
        return f"got {refused[1]!r}; {refused[2]}"
    kinds = [kind_in_words(kind) for kind in re.findall(r"Expected (an? .+?)(?:\. Got value.*)?$", text, re.MULTILINE)]
    kinds = [kind for kind in kinds if not re.match("an? (path|dot|instantiatable)", kind)]
    values = re.findall(r"(?:Got|Given) value: (.*)", text)
    of_class = re.search("class_path|[Ii]mport path|subclass|attribute|instantiatable", text)
    if not values or not kinds or (of_class and set(kinds) <= {"a list", "null", "one of ['auto']"}):
        return class_and_remedy(text, chain)
    form = FORMS.get(name.split(".")[-1]) or decimal(values[-1], kinds) or " or ".join(kinds)
    return f"got {shorten(values[-1], 80)!r}; give {form}"


def kind_in_words(kind: str) -> str:
    """Plain words for a type in jsonargparse's messages, such as "a <class 'int'>"."""
    kind = re.sub(r"an? <class '(?:\w+\.)*(\w+)'>", lambda match: KINDS.get(match[1], match[1]), kind)
    return re.sub(r"an? (typing\.)?Literal", "one of ", kind)


def decimal(value: str, kinds: list[str]) -> str | None:
    """The decimal number to give in place of a fraction; None if no number is wanted or no fraction is given.

    >>> decimal("8/255", ["a number"])
    'a decimal number, here 0.0313725'
    """
    parts = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)\s*", value)
    if parts is None or "a number" not in kinds or float(parts[2]) == 0:
        return None
    return f"a decimal number, here {float(Fraction(parts[1]) / Fraction(parts[2])):.6g}"


def class_and_remedy(text: str, chain: list[str]) -> str:
    """Value and remedy of a setting whose class is wrong."""
    given = r"(?:Expected a path but |sub-config file |Got value: |import path string: |class_path ')"
    if file := re.search(given + r"(\S+\.py)\b", text):
        example = ".".join(Path(file[1]).with_suffix("").parts[-1:])
        return f"got {file[1]!r}; this is a Python file; give the import path of a class in it, such as {example}.Class"
    if wrong := re.search(r"Import path (\S+) does not correspond to a subclass of (\w+)", chain[-1]):
        return f"got {wrong[1]!r}; {not_a(wrong[1], wrong[2])}"
    for root in reversed(chain):
        for pattern, remedy in CLASS_ERRORS:
            if match := re.search(pattern, root):
                return f"got {shorten(match[1], 80)!r}; {remedy.format(*match.groups())}"
    match = re.search(r"class_path[ =]'([^']+)'|import path string: (\S+)|Got value: (?!Namespace)(\S+)", text)
    if not match or not re.search("has no attribute|No module named|import path string", text):
        listed = re.search(r"Expected a <class 'list'>\. Got value: (.+)", chain[-1])
        return f"got {shorten(listed[1], 80)!r}; give a list" if listed else shorten(chain[-1], 200)
    name = match[match.lastindex or 0]
    return f"got {name!r}; {missing_class(name)}"


def not_a(path: str, kind: str) -> str:
    """Problem and remedy of an import path whose class or function is not a ``kind``."""
    with suppress(ImportError, AttributeError, ValueError):
        given = resolve_name(path)
        if inspect.isfunction(given) and inspect.signature(given).return_annotation is inspect.Signature.empty:
            result = "nn.Module" if kind == "Module" else kind
            return f"this function does not say what it returns; annotate it, def {given.__name__}(...) -> {result}"
    return f"it is not a {kind}; give one"
