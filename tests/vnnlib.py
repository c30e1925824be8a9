"""A parser of VNN-LIB files that shares nothing with the code that writes them."""

import re

import numpy as np


def tokens(text):
    return re.findall(r"[()]|[^\s()]+", re.sub(r";[^\n]*", "", text))


def parsed(words):
    """Nested lists of an S-expression, which this removes from the words."""
    word = words.pop(0)
    if word != "(":
        return word
    expression = []
    while words[0] != ")":
        expression.append(parsed(words))
    words.pop(0)
    return expression


class VNNLIB:
    """Bounds of each input, and the conjunctions of comparisons of outputs, one of which a counterexample fulfils."""

    def __init__(self, path):
        words, self.variables, self.cases = tokens(path.read_text()), [], []
        lower, upper = {}, {}
        while words:
            keyword, *rest = parsed(words)
            if keyword == "declare-const":
                name, kind = rest
                assert kind == "Real"
                self.variables.append(name)
            else:
                assert keyword == "assert"
                operator, *operands = rest[0]
                if operator == "or":
                    self.cases += [[(op, one, other) for op, one, other in case[1:]] for case in operands]
                else:
                    name, bound = operands
                    (lower if operator == ">=" else upper)[int(name.removeprefix("X_"))] = np.float32(bound)
        self.lower, self.upper = (np.array([side[i] for i in range(len(side))]) for side in (lower, upper))

    def violated(self, logits):
        compare = {">=": np.greater_equal, "<=": np.less_equal}
        values = {f"Y_{k}": value for k, value in enumerate(logits)}
        return any(all(compare[op](values[a], values[b]) for op, a, b in case) for case in self.cases)
