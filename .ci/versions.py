"""Checks that no stage or method computes something else than its recorded version did.

For each of them the code that decides its numbers is collected by reading source files, nothing is imported: from the
entries in `_units` on, every function, class and constant of this repository that is named there, and so on, also in
imports inside of functions. What is hashed is the syntax tree without what decides no number:

- comments, docstrings, formatting, annotations, imports (so that a module may move), and the words of raised errors
- the version itself
- default values of settings (`Params`): a setting's value is part of the fingerprint already
- modules in CARRIERS, which carry work, files and messages, and no numbers

The digests stand in versions.json beside the version that they were recorded for, with one of each function, class and
constant, so that a complaint can name what changed. docs/versions.md says when to raise a version.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

RECORD = "versions.json"
FLOORS = ("pipeline", "extractors", "trainers", "flows")
CARRIERS = (  # not followed: what they do is checked by checksums, formats and tests of their own
    "pipeline.errors", "pipeline.settings", "pipeline.child", "pipeline.shared_arrays", "pipeline.memory",
    "pipeline.plugins",
    "extractors.clock", "extractors.decoder_count",  # how long the work takes, and in how many processes it is done
    "pipeline.run",  # which work is done where, never what it computes
    "pipeline.store",  # segments are checked against their checksums when they are read
    "pipeline.corpus",  # what a corpus holds enters fingerprints by digest
    "trainers.contract", "trainers.registry",
    "trainers.recipes",  # what it fills enters fingerprints as settings
    "trainers.loop.progress", "trainers.loop.curves", "trainers.loop.interrupts", "trainers.loop.torchrun",
)  # fmt: skip
SETTINGS = ("pipeline.settings:Params", "pipeline.settings:Options")  # whose fields' defaults are not hashed
LOGGERS = ("log", "logger")

Symbol = tuple[str, str]
"""A module and what it binds at its top level; ("module", "") is what it runs when it is imported."""


@dataclass(frozen=True)
class Unit:
    """A stage or method: the class that states its version, and the symbols that its numbers begin with."""

    name: str
    owner: Symbol
    roots: tuple[str, ...]


@dataclass
class Module:
    """A parsed file: what its top level binds to code, to imports, and the statements that bind nothing."""

    code: dict[str, ast.stmt] = field(default_factory=dict)
    imports: dict[str, Symbol] = field(default_factory=dict)  # the symbol is "" for a module
    runs: list[ast.stmt] = field(default_factory=list)


class Tree:
    """The source files below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._modules: dict[str, Module | None] = {}

    def module(self, name: str) -> Module | None:
        """A module of this repository by its dotted name; None for any other."""
        if name not in self._modules:
            self._modules[name] = self._parsed(name)
        return self._modules[name]

    def _parsed(self, name: str) -> Module | None:
        if name.split(".", maxsplit=1)[0] not in FLOORS:
            return None
        path = self.root.joinpath(*name.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if not file.is_file():
            return None
        found = Module()
        self._bind(found, syntax(file.read_text(encoding="utf-8")))
        return found

    def _bind(self, module: Module, body: Iterable[ast.stmt]) -> None:
        """Sort the statements of a top level, or of a branch of it, into what they are."""
        for node in body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                module.imports.update(self._imported(node))
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                module.code[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    names = [part.id for part in ast.walk(target) if isinstance(part, ast.Name)]
                    module.code.update(dict.fromkeys(names, node))
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                self._bind(module, node.orelse)
            elif isinstance(node, ast.If | ast.Try):
                module.runs.append(node)
                handlers = [part for handler in getattr(node, "handlers", []) for part in handler.body]
                self._bind(module, [*node.body, *handlers, *node.orelse])
            elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
                module.runs.append(node)

    def _imported(self, node: ast.Import | ast.ImportFrom) -> dict[str, Symbol]:
        """The names that an import binds, of this repository."""
        found: dict[str, Symbol] = {}
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.name if alias.asname else alias.name.split(".")[0]
                found[alias.asname or name] = (name, "")
        elif node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                whole = self.module(inner) is not None
                found[alias.asname or alias.name] = (inner, "") if whole else (node.module, alias.name)
        return {name: symbol for name, symbol in found.items() if symbol[0].split(".")[0] in FLOORS}

    def definition(self, symbol: Symbol) -> Symbol:
        """The module and name where a symbol is defined, through modules that only import it."""
        module = self.module(symbol[0])
        while module and symbol[1] not in module.code and symbol[1] in module.imports:
            symbol = module.imports[symbol[1]]
            module = self.module(symbol[0])
        return symbol

    def bases(self, symbol: Symbol) -> Iterator[Symbol]:
        """A class, then the classes it is derived from in this repository, nearest first."""
        symbol = self.definition(symbol)
        module = self.module(symbol[0])
        node = module.code.get(symbol[1]) if module else None
        if not isinstance(node, ast.ClassDef):
            return
        yield symbol
        for base in node.bases:
            named = base.value if isinstance(base, ast.Subscript) else base  # Extractor[ClipParams]
            if isinstance(named, ast.Name):
                yield from self.bases((symbol[0], named.id))

    def attribute(self, owner: Symbol, name: str) -> Any:
        """The constant that a class, or the nearest of its bases, gives an attribute."""
        for symbol in self.bases(owner):
            node = self._code(symbol)
            assert isinstance(node, ast.ClassDef)
            for statement in node.body:
                for target, value in _assigned(statement):
                    if target == name and isinstance(value, ast.Constant):
                        return value.value
        raise LookupError(f"{':'.join(owner)} gives {name} no constant")

    def _code(self, symbol: Symbol) -> ast.stmt:
        """The statement that defines a symbol, which may be a method written `Class.method`."""
        module = self.module(symbol[0])
        name, _, method = symbol[1].partition(".")
        if module is None or name not in module.code:
            raise LookupError(f"{symbol[0]} has no {symbol[1]}")
        node = module.code[name]
        if method:
            assert isinstance(node, ast.ClassDef)
            own = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == method]
            if not own:
                raise LookupError(f"{symbol[0]} has no {symbol[1]}")
            node = own[0]
        return node

    def reached(self, roots: Iterable[str]) -> dict[Symbol, str]:
        """Every symbol that the roots (`module:name`) name, directly or not, with the text that is hashed of it."""
        found: dict[Symbol, str] = {}
        todo: list[Symbol] = [(root.partition(":")[0], root.partition(":")[2]) for root in roots]
        while todo:
            symbol = self.definition(todo.pop())
            if symbol in found or _carries(symbol[0]):
                continue
            found[symbol], needed = self._one(symbol)
            todo.extend(needed)
        return {symbol: text for symbol, text in found.items() if text}

    def _one(self, symbol: Symbol) -> tuple[str, frozenset[Symbol]]:
        """The text of one symbol, and the symbols it names."""
        module = self.module(symbol[0])
        assert module is not None
        texts, needed = [], {(symbol[0], "")}
        for node in [self._code(symbol)] if symbol[1] else module.runs:
            text, names = plain(node, self._is_settings(symbol, node))
            texts.append(text)
            needed |= set(self._named(symbol[0], module, node, names))
        return "\n".join(texts), frozenset(needed)

    def _is_settings(self, symbol: Symbol, node: ast.stmt) -> bool:
        if not isinstance(node, ast.ClassDef):
            return False
        return any(":".join(base) in SETTINGS for base in self.bases(symbol))

    def _named(
        self, name: str, module: Module, node: ast.stmt, names: Iterable[tuple[str, ...]]
    ) -> Iterator[Symbol]:
        """The symbols of this repository among the dotted names of some code."""
        known = dict(module.imports)
        for inner in imports(node):
            known |= self._imported(inner)
        for first, *rest in names:
            if first in known:
                yield from self._chain(known[first], rest)
            elif first in module.code:
                yield (name, first)

    def _chain(self, start: Symbol, parts: Iterable[str]) -> Iterator[Symbol]:
        """The symbol of a dotted name whose beginning is imported."""
        module, symbol = start
        if symbol:
            yield start
            return
        for part in parts:
            found = self.module(module)
            if found is not None and (part in found.code or part in found.imports):
                yield (module, part)
                return
            module = f"{module}.{part}"
            if self.module(module) is None:
                return


@cache
def syntax(source: str) -> list[ast.stmt]:
    """The statements of a file; nobody changes them."""
    return ast.parse(source).body


@cache
def imports(node: ast.stmt) -> tuple[ast.Import | ast.ImportFrom, ...]:
    """The imports inside of some code."""
    return tuple(inner for inner in ast.walk(node) if isinstance(inner, ast.Import | ast.ImportFrom))


@cache
def plain(node: ast.stmt, settings: bool) -> tuple[str, frozenset[tuple[str, ...]]]:
    """The hashed text of code, and the dotted names in it; of a class of `settings` without its fields."""
    writer = Writer(settings)
    text = writer.text(node)
    return text, frozenset(writer.names)


class Writer:
    """Writes what decides numbers in a syntax tree as text that is the same for every release of Python."""

    def __init__(self, settings: bool) -> None:
        self.settings = settings
        self.names: set[tuple[str, ...]] = set()

    def text(self, node: Any) -> str:
        """The text of a node, a list of them or a constant; "" of what does not count."""
        if isinstance(node, list):
            return f"[{','.join(text for part in node if (text := self.text(part)))}]"
        if not isinstance(node, ast.AST):
            return repr(node)
        if isinstance(node, ast.Import | ast.ImportFrom) or self._is_remark(node):
            return ""
        if isinstance(node, ast.Raise):  # the kind of an error, without its words
            return self._fields("Raise", exc=node.exc.func if isinstance(node.exc, ast.Call) else node.exc)
        if isinstance(node, ast.arg):
            return node.arg
        if isinstance(node, ast.AnnAssign):
            return self._fields("Assign", targets=[node.target], value=node.value)
        if isinstance(node, ast.ClassDef):
            return self._class(node)
        if isinstance(node, ast.Name):
            self.names.add((node.id,))
        if isinstance(node, ast.Attribute) and (parts := _dotted(node)):
            self.names.add(parts)
        left_out = ("ctx", "kind", "type_comment", "type_params", "returns")
        fields = {name: getattr(node, name, None) for name in node._fields if name not in left_out}
        return self._fields(type(node).__name__, **fields)

    def _fields(self, kind: str, **fields: Any) -> str:
        named = [f"{name}={self.text(value)}" for name, value in fields.items() if value not in (None, [])]
        return f"{kind}({','.join(named)})"

    def _class(self, node: ast.ClassDef) -> str:
        """A class without its version, and one of settings without its fields."""
        body = []
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and self.settings:
                continue
            given = dict(_assigned(statement))
            if "version" in given:
                body += [f"{name}={self.text(value)}" for name, value in given.items() if name != "version"]
            else:
                body.append(self.text(statement))
        bases = self.text(node.bases + [keyword.value for keyword in node.keywords])
        return f"class {node.name}{bases}{self.text(node.decorator_list)}[{','.join(filter(None, body))}]"

    @staticmethod
    def _is_remark(node: ast.AST) -> bool:
        """Whether a statement is a docstring, or logs a line."""
        if not isinstance(node, ast.Expr):
            return False
        value = node.value
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
            owner = value.func.value
            return isinstance(owner, ast.Name) and owner.id in LOGGERS
        return isinstance(value, ast.Constant)


def _carries(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in CARRIERS)


def _dotted(node: ast.expr) -> tuple[str, ...]:
    """The parts of `a.b.c`; nothing where it begins with anything but a name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return (node.id, *reversed(parts)) if isinstance(node, ast.Name) else ()


def _assigned(statement: ast.stmt) -> Iterator[tuple[str, ast.expr | None]]:
    """The names that a statement of a class gives values, one by one where it is a tuple of them."""
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        yield statement.target.id, statement.value
    if isinstance(statement, ast.Assign):
        for target in statement.targets:
            if isinstance(target, ast.Name):
                yield target.id, statement.value
            elif isinstance(target, ast.Tuple) and isinstance(statement.value, ast.Tuple):
                for name, value in zip(target.elts, statement.value.elts, strict=True):
                    if isinstance(name, ast.Name):
                        yield name.id, value


def _digest(texts: Iterable[str]) -> str:
    return hashlib.blake2b("\n".join(sorted(texts)).encode(), digest_size=8).hexdigest()


def _units(tree: Tree) -> Iterator[Unit]:
    """Every stage and method, with the entries of the code that decides its numbers."""
    graph, registry = tree.module("flows.graph"), tree.module("trainers.registry")
    assert graph is not None and registry is not None
    for node in ast.walk(graph.code["EXTRACTORS"]):
        if (
            isinstance(node, ast.Name)
            and node.id in graph.imports
            and graph.imports[node.id][1] != "Extractor"
        ):
            owner = tree.definition(graph.imports[node.id])
            roots = [":".join(owner)]
            if ("extractors.base", "FrameReader") in tree.bases(owner):
                roots.append("extractors.one_pass:read_together")  # which frames reach it, and in which order
            yield Unit(tree.attribute(owner, "name"), owner, tuple(roots))
    yield Unit(
        "import", ("pipeline.features.imported", "Imported"),
        tuple(f"pipeline.features.importing:{kind}" for kind in ("import_files", "import_h2arn", "import_ms_sl")),
    )  # fmt: skip
    for name in ("pack", "train", "evaluate"):
        owner = ("trainers.stages", name.capitalize())
        yield Unit(name, owner, (":".join(owner), f"trainers.workers:{name}"))
    for method, entry in ast.literal_eval(registry.code["BUILT_IN"].value).items():  # type: ignore[attr-defined]
        yield _method(tree, method, entry)
    for owner, work in (
        (("flows.search.index", "Index"), "flows.search.indexing:run"),
        (("flows.reporting", "Report"), "flows.results.report.page:run"),
    ):
        yield Unit(owner[1].lower(), owner, (":".join(owner), work))


def _method(tree: Tree, name: str, entry: str) -> Unit:
    """A method: what its declaration's four functions name, and the rules of its settings."""
    module, _, variable = entry.partition(":")
    declared = tree.module(module)
    assert declared is not None
    made = declared.code[variable]
    assert isinstance(made, ast.Assign) and isinstance(made.value, ast.Call)
    assert isinstance(made.value.func, ast.Name)
    owner = (module, made.value.func.id)
    node = declared.code[owner[1]]
    assert isinstance(node, ast.ClassDef)
    (config,) = (
        value.id
        for statement in node.body
        for target, value in _assigned(statement)
        if target == "config" and isinstance(value, ast.Name)
    )
    parts = [f"{module}:{owner[1]}.{part}" for part in ("pack", "open_data", "build", "optimizer")]
    return Unit(name, owner, (*parts, f"{module}:{config}"))


@dataclass(frozen=True)
class State:
    """The state of the source files: version and digest of each stage and method, and the digest of each symbol."""

    units: dict[str, dict[str, Any]]
    symbols: dict[str, str]
    reached: dict[str, list[str]]
    owners: dict[str, str]


def read(root: Path) -> State:
    """The state of the source files below a folder."""
    tree = Tree(root)
    units: dict[str, dict[str, Any]] = {}
    symbols: dict[str, str] = {}
    reached: dict[str, list[str]] = {}
    owners: dict[str, str] = {}
    for unit in _units(tree):
        texts = tree.reached(unit.roots)
        units[unit.name] = {
            "version": tree.attribute(unit.owner, "version"), "digest": _digest(texts.values()),
        }  # fmt: skip
        owners[unit.name] = ":".join(unit.owner)
        reached[unit.name] = [":".join(symbol) for symbol in texts]
        symbols |= {":".join(symbol): _digest([text]) for symbol, text in texts.items()}
    return State(units, symbols, reached, owners)


def complaints(now: State, recorded: dict[str, Any]) -> dict[str, str]:
    """One sentence for each stage or method whose code or version is not the recorded one, by its name."""
    before, found = recorded["units"], {}
    for name, unit in now.units.items():
        then = before.get(name)
        if then is None:
            found[name] = f"{name} is new: record it with `make record-versions`"
        elif unit["version"] < then["version"]:
            found[name] = (
                f"the version of {name} went down from {then['version']} to {unit['version']}: raise it"
            )
        elif unit["version"] > then["version"]:
            found[name] = (
                f"the version of {name} was raised from {then['version']} to {unit['version']}: "
                "record it with `make record-versions`"
            )
        elif unit["digest"] != then["digest"]:
            found[name] = (
                f"the code of {name} changed{_where(now, recorded, name)}: raise the version of {now.owners[name]} "
                f"if it computes other numbers, or say that it does not with `make same-numbers STAGES={name}`"
            )
    for name in before.keys() - now.units.keys():
        found[name] = f"{name} is recorded and is not there any more: forget it with `make record-versions`"
    return found


def _where(now: State, recorded: dict[str, Any], name: str) -> str:
    """The names of what changed, three at most; "" where only something that is gone did."""
    changed = [
        symbol for symbol in now.reached[name] if recorded["symbols"].get(symbol) != now.symbols[symbol]
    ]
    more = ", ..." if len(changed) > 3 else ""
    return f" ({', '.join(sorted(changed)[:3])}{more})" if changed else ""


def record(now: State, recorded: dict[str, Any], same: Iterable[str] = ()) -> dict[str, Any]:
    """The new record: new, raised and removed units, and those of `same` whose version stayed.

    What else changed stays as it was recorded, and is complained about again.
    """
    before, units = recorded["units"], {}
    for name, unit in now.units.items():
        then = before.get(name)
        raised = then is None or unit["version"] > then["version"]
        units[name] = unit if raised or name in same else then
    settled = {name for name in units if units[name] == now.units[name]}
    symbols = {
        s: recorded["symbols"][s] for n in now.units for s in now.reached[n] if s in recorded["symbols"]
    }
    symbols |= {symbol: now.symbols[symbol] for name in settled for symbol in now.reached[name]}
    return {"units": units, "symbols": dict(sorted(symbols.items()))}


def main(arguments: list[str]) -> int:
    """Check, or record. Exit status: 0 nothing to complain of, 1 something, 2 a wrong name."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", action="store_true", help="Record new stages and raised versions.")
    parser.add_argument(
        "--same-numbers", nargs="+", default=[], metavar="STAGE",
        help="Record these as they are: their code changed and computes what it computed. `all` is all of them.",
    )  # fmt: skip
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="The repository.")
    options = parser.parse_args(arguments)
    path = options.root / ".ci" / RECORD
    now = read(options.root)
    recorded = (
        json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"units": {}, "symbols": {}}
    )
    same = list(now.units) if options.same_numbers == ["all"] else options.same_numbers
    for name in same:
        if name not in now.units:
            print(
                f"there is no stage or method {name!r}; possible: all, {', '.join(now.units)}",
                file=sys.stderr,
            )
            return 2
    if options.record or same:
        recorded = record(now, recorded, same)
        path.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")
    found = complaints(now, recorded)
    for sentence in found.values():
        print(sentence, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
