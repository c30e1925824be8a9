"""jsonargparse's look-ups with caches, which return the same: a short run spends half of its time on its settings."""

import sys
import weakref

from jsonargparse import Namespace, _actions, _namespace, _subcommands, _util

_find, _path, _parse_key = _subcommands.find_action_and_subcommand, _util.get_import_path, Namespace._parse_key
_LAST = (_actions._ActionConfigLoad, _actions.ActionFail)
_paths = weakref.WeakKeyDictionary()
_indices = weakref.WeakKeyDictionary()  # by parser: number of its actions, their index (None with subcommands)


def get_import_path(value):
    """Import path of an object; that of a class is stored."""
    if not isinstance(value, type) or _util.resolved_import_paths.get(value):
        return _path(value)
    if value not in _paths:
        _paths[value] = _path(value)
    return _paths[value]


def find_action_and_subcommand(parser, dest, exclude=None):
    """The action of a name, by an index of a parser without subcommands."""
    number, index = _indices.get(parser, (-1, None))
    if number != len(parser._actions):
        index = _indexed(_actions.filter_non_parsing_actions(parser._actions))
        _indices[parser] = len(parser._actions), index
    if index is None:
        return _find(parser, dest, exclude)
    found = [action for action in index.get(dest, ()) if exclude is None or not isinstance(action, exclude)]
    return next((action for action in found if not isinstance(action, _LAST)), found[-1] if found else None), None


def _indexed(actions):
    if any(isinstance(action, _subcommands.ActionSubCommands) for action in actions):
        return None
    index = {}
    for action in actions:
        options = {option.removeprefix("--") for option in action.option_strings if option.startswith("--")}
        for name in {action.dest, *options}:
            index.setdefault(name, []).append(action)
    return index


def parse_key(self, key):
    """Leaf, parent and the parent's key; a plain name is the leaf."""
    if isinstance(key, str) and key.isidentifier() and key not in _namespace.clash_names:
        return key, self, ""
    return _parse_key(self, key)


def install():
    """Put them in the place of jsonargparse's own, in each of its modules."""
    Namespace._parse_key = parse_key
    for module in [module for name, module in sys.modules.items() if name.startswith("jsonargparse")]:
        for own in (get_import_path, find_action_and_subcommand):
            if own.__name__ in vars(module):
                setattr(module, own.__name__, own)
