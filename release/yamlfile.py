"""YAML files that people write and the pipeline appends to.

Every node knows its file and line, so that an error can name them. Nothing that stands in a file
is touched by what is appended, and a file is replaced as a whole or not at all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TypeVar

import yaml

from release.errors import ConfigurationError

T = TypeVar("T")


class Node:
    """A YAML node that knows its file and line."""

    def __init__(self, path: Path, node: yaml.Node) -> None:
        self.path = path
        self.node = node

    def error(self, what: str, hint: str) -> ConfigurationError:
        """An error on this node."""
        line = self.node.start_mark.line + 1
        return ConfigurationError(what, on=f"{self.path}, line {line}", hint=hint)

    def text(self) -> str:
        """The scalar as it is written."""
        if not isinstance(self.node, yaml.ScalarNode) or self.node.tag.endswith(":null"):
            raise self.error("expected a text here", "write a value on one line")
        return str(self.node.value)

    def items(self) -> list[Node]:
        """The items of a list; none where nothing is written."""
        if isinstance(self.node, yaml.ScalarNode) and self.node.tag.endswith(":null"):
            return []
        if not isinstance(self.node, yaml.SequenceNode):
            raise self.error("expected a list here", "begin each item with '- '")
        return [Node(self.path, item) for item in self.node.value]

    def pairs(self) -> dict[str, Node]:
        """The values of a mapping by their keys, each of which is there once."""
        if not isinstance(self.node, yaml.MappingNode):
            raise self.error("expected 'key: value' lines here", "see the README for the keys")
        found: dict[str, Node] = {}
        for key, value in self.node.value:
            name = Node(self.path, key).text()
            if name in found:
                raise Node(self.path, key).error(
                    f"the key {name!r} is there twice", "remove one of the two"
                )
            found[name] = Node(self.path, value)
        return found

    def mapping(self, *allowed: str, required: Iterable[str] = ()) -> dict[str, Node]:
        """The values of a mapping with the ``allowed`` keys, the ``required`` ones among them."""
        found = self.pairs()
        for name, value in found.items():
            if name not in allowed:
                raise value.error(f"unknown key {name!r}", f"known here: {', '.join(allowed)}")
        for name in required:
            if name not in found:
                raise self.error(f"the key {name!r} is missing", f"add: {name}: ...")
        return found

    def parse(self, parser: Callable[[str], T]) -> T:
        """What ``parser`` makes of the text; its complaint gets the line."""
        try:
            return parser(self.text())
        except ConfigurationError as error:
            raise self.error(f"{error.on} {error.what}", error.hint) from None

    def match(self, pattern: re.Pattern[str], what: str, example: str) -> str:
        """The text, which ``pattern`` must match as a whole."""
        text = self.text()
        if not pattern.fullmatch(text):
            raise self.error(f"{text!r} is not {what}", f"write it as in {example}")
        return text


def compose(path: Path, text: str, *, begin: str) -> yaml.Node:
    """Reads ``text``.

    Args:
        path: for messages.
        begin: the line that an empty file should begin with.

    Raises:
        ConfigurationError: it is empty or not YAML, with the line.
    """
    if text.startswith("\ufeff"):
        raise ConfigurationError(
            "begins with a byte order mark", on=f"{path}, line 1", hint="save it as plain UTF-8"
        )
    try:
        node = yaml.compose(text, Loader=yaml.CSafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise ConfigurationError(
            f"is not YAML: {error.problem}", on=where, hint="mend the line, or restore the file"
        ) from None
    except yaml.reader.ReaderError as error:
        line = text.encode()[: error.position].count(b"\n") + 1
        raise ConfigurationError(
            f"is not YAML: {error.reason}", on=f"{path}, line {line}", hint="remove the character"
        ) from None
    if node is None:
        raise ConfigurationError("is empty", on=f"{path}, line 1", hint=f"begin with: {begin}")
    return node


def end_of(node: yaml.Node) -> int:
    """Where the text of ``node`` ends; the end mark of a block collection is past the next line
    break.
    """
    if isinstance(node, yaml.MappingNode) and not node.flow_style:
        return end_of(node.value[-1][1])
    if isinstance(node, yaml.SequenceNode) and not node.flow_style:
        return end_of(node.value[-1])
    return int(node.end_mark.index)


def read(path: Path, *, hint: str) -> str:
    """The text of a file.

    Raises:
        ConfigurationError: it is not there (``hint`` says what to do then), or cannot be read.
    """
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        raise ConfigurationError("is not there", on=str(path), hint=hint) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigurationError(
            "is not UTF-8", on=f"{path}, line {line}", hint="mend the line, or restore the file"
        ) from error
    except OSError as error:
        raise ConfigurationError("cannot be read", on=str(path), detail=str(error)) from error


def appended(path: Path, text: str, key: str, items: Iterable[Sequence[str]], *, begin: str) -> str:
    """``text`` with ``items`` behind the list of ``key``, which is its last key.

    Args:
        path: for messages.
        items: the lines of each item, of which the first gets the ``- ``.
        begin: the line that an empty file should begin with.

    Raises:
        ConfigurationError: the text has a shape that cannot be appended to.
    """
    node = compose(path, text, begin=begin)
    assert isinstance(node, yaml.MappingNode)
    newline = "\r\n" if "\r\n" in text else "\n"
    if not text.endswith("\n"):
        text += newline
    column = 2
    last = node.value[-1]
    lists = [value for name, value in node.value if name.value == key]
    if not lists:
        text += f"{key}:{newline}"
    elif last[0].value != key:
        raise Node(path, last[0]).error(
            f"a key follows {key}, which must be the last to be appended to",
            f"move {last[0].value!r} above {key}",
        )
    elif lists[0].value and isinstance(lists[0], yaml.SequenceNode):
        if lists[0].flow_style:
            raise Node(path, lists[0]).error(
                f"{key} is written in [brackets], which cannot be appended to",
                "write each entry on a line that begins with '- '",
            )
        column = lists[0].start_mark.column
    else:
        # An empty list or null makes room, and a comment behind it stays.
        start, end = lists[0].start_mark.index, lists[0].end_mark.index
        text = text[:start].rstrip(" ") + text[end:] if start < end else text
    added = []
    for first, *others in items:
        added.append(" " * column + f"- {first}")
        added += [" " * (column + 2) + line for line in others]
    return text + newline.join(added) + newline


def write(path: Path, text: str) -> None:
    """Replaces the file as a whole, or leaves it as it is; its permissions stay."""
    with NamedTemporaryFile("wb", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
            temporary.chmod(path.stat().st_mode & 0o777 if path.exists() else 0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
