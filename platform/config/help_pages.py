"""The pages of --help: every flag with the values it takes, its present value and a sentence."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from textwrap import fill
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro
from pydantic.fields import FieldInfo

from magicdistill.data_pipeline.config import LIMITS, Policy
from magicdistill.models.config import Config
from magicdistill.models.registry import Registry
from magicdistill.platform.config.command_line import description_of
from magicdistill.platform.config.validation import RecipeError, registry_of, sections_in

BOUNDS = ["min", "max"]
"""Fields of a section that is shown as one pair of flags."""
SHORT = 8
"""A section of at most so many flags is shown on the page of the section around it."""
WORDS = {int: "INT", float: "FLOAT", str: "TEXT", bool: "{true,false}", NoneType: "null"}


@dataclass(frozen=True)
class Flag:
    """What one field is on the command line."""

    name: str
    """The flag, such as `--method.alpha_weak`."""
    values: str
    """What it takes, such as `FLOAT`."""
    present: str
    """The value that it has without the flag; empty where there is nothing to say."""
    sentence: str
    """What it means."""


@dataclass(frozen=True)
class Section:
    """A section of a recipe, which may be absent from it."""

    name: str
    """Dotted name; empty for the recipe itself."""
    sentence: str
    """What it is for."""
    cls: type[Config]
    value: Config | None
    """Its present values; None where the recipe leaves it out."""
    choices: Registry[Any] | None = None
    """The alternatives among which its tag chooses."""


def flags(section: Section) -> list[Flag]:
    """Return the flags of a section without those of the sections inside it."""
    prefix = f"{section.name}." if section.name else ""
    return [
        _flag(section, name, hint, f"{prefix}{name}")
        for name, hint in _fields(section)
        if not list(_inner(section, name, hint, prefix)) or section.value is None
    ]


def sections(section: Section) -> list[Section]:
    """Return the sections inside a section."""
    prefix = f"{section.name}." if section.name else ""
    fields = _fields(section)
    return [inner for name, hint in fields for inner in _inner(section, name, hint, prefix)]


def all_sections(section: Section) -> Iterator[Section]:
    """Yield a section and those inside it, at every depth."""
    yield section
    for inner in sections(section):
        yield from all_sections(inner)


def root(config: Config) -> Section:
    """Return a whole configuration as a section without a name."""
    return Section("", summary(type(config)), type(config), config)


def page(top: Section, topic: str, width: int) -> str:
    """Return the page of a section, of one flag, or of `all`.

    Raises RecipeError for a topic that is neither, with the nearest name.
    """
    everything = list(all_sections(top))
    if topic == "all":
        return "\n\n".join(_block(section, width) for section in everything)
    topic = topic.removeprefix("--").replace("-", "_")
    named = [section for section in everything if section.name == topic]
    members = [s for s in everything if s.name.rpartition(".")[0] == topic and s.name != topic]
    if named or (members and topic):
        return "\n\n".join(_section_page(section, width) for section in named or members)
    found = {flag.name: flag for section in everything for flag in flags(section)}
    for name, flag in found.items():
        if name == f"--{topic}" or name.startswith((f"--{topic}.min,", f"--{topic}.{{")):
            return format_flags([flag], width)
    names = [s.name for s in everything if s.name] + [name[2:] for name in found]
    near = get_close_matches(topic, names, n=1)
    hint = f"did you mean {near[0]}?" if near else "see the sections in --help"
    raise RecipeError(f"--help {topic}: there is no such section or flag; {hint}")


def form_page(form: type[Config], width: int) -> str:
    """Return the flags of a job that takes no recipe, with the defaults that say something."""
    top = Section("", summary(form), form, form.model_construct())
    blocks = []
    for section in all_sections(top):
        found = [
            replace(flag, present=flag.present if flag.present not in ("null", "empty") else "")
            for flag in flags(section)
        ]
        blocks.append(f"{section.sentence}\n{format_flags(found, width)}")
    return "\n\n".join(blocks)


def _section_page(section: Section, width: int) -> str:
    blocks, listed = [_block(section, width)], []
    for inner in sections(section):
        if len(flags(inner)) <= SHORT and not sections(inner):
            blocks.append(_block(inner, width))
        else:
            listed.append(inner)
    if listed:
        blocks.append("Sections inside, each with a page of its own:\n" + index(listed, width))
    return "\n\n".join(blocks)


def _block(section: Section, width: int) -> str:
    """Return a section's heading, flags and alternatives."""
    lines = [
        fill(f"{section.name}: {section.sentence}" if section.name else section.sentence, width)
    ]
    if section.value is None:
        lines.append(
            fill("The recipe leaves this section out: these are keys for a recipe file.", width)
        )
    lines.append(format_flags(flags(section), width))
    if isinstance(section.value, Policy):
        lines += ["", _limits(section.name, section.value, width)]
    for title, registry in _registries(section):
        lines.append(f"\n{title} can be:")
        lines += [
            _item(name, summary(registry.get(name)), width) for name in sorted(registry.names())
        ]
    return "\n".join(line for line in lines if line)


def _limits(name: str, policy: Policy, width: int) -> str:
    """Return the limits on scores that hold for each kind of clip, and how one is set."""
    example = f"--{name}.limits.portrait.motion.px.min 0.3 --{name}.limits.portrait.motion.px.max 8"
    lines = [fill_text(f"A limit is set by name of mixture and score, such as {example}", width)]
    for mixture in LIMITS:
        lines.append(f"Limits that hold for {mixture} clips, as min, max:")
        limits = policy.limits_of(mixture).items()
        lines += [f"  {score:24}{_bounds(limit)}" for score, limit in sorted(limits)]
    return "\n".join(lines)


def _registries(section: Section) -> Iterator[tuple[str, Registry[Any]]]:
    if section.choices is not None and not _is_entry(section):
        yield f"--{section.name}.{section.choices.tag}", section.choices
    for name, hint in _fields(section):
        registry = registry_of(section.cls.model_fields[name])
        if registry is not None and tuple in _origins(hint):
            yield f"{registry.tag} of an entry of `{name}` in a recipe file", registry


def index(listed: list[Section], width: int) -> str:
    """Return sections with a sentence each."""
    return "\n".join(_item(f"--help {s.name}", s.sentence, width) for s in listed)


def format_flags(found: list[Flag], width: int, *, present: bool = True) -> str:
    """Return flags, each with its values, its present value and its sentence below."""
    lines = []
    for flag in found:
        head = fill(
            f"{flag.name} {flag.values}".rstrip(),
            width,
            initial_indent="  ",
            subsequent_indent="        ",
            break_on_hyphens=False,
            break_long_words=False,
        )
        now = f"Now {flag.present}." if flag.present and present else ""
        lines += [head, _indented(f"{flag.sentence} {now}".strip(), width)]
    return "\n".join(lines)


def summary(cls: type[Any] | None) -> str:
    """Return the first sentence of a class's docstring."""
    text = " ".join((cls.__doc__ or "").split("\n\n")[0].split()) if cls else ""
    found = re.match(r".*?[.](?=\s+[A-Z`]|$)", text)
    return found.group() if found else text


def fill_text(text: str, width: int) -> str:
    """Return a paragraph with lines of at most `width` columns."""
    return fill(" ".join(text.split()), width, break_on_hyphens=False)


def _item(name: str, sentence: str, width: int) -> str:
    gap = 26
    if len(name) + 4 > gap:
        return f"  {name}\n{_indented(sentence, width, gap)}"
    lines = fill(sentence, width - gap, break_on_hyphens=False).splitlines() or [""]
    rest = [" " * gap + line for line in lines[1:]]
    return "\n".join([f"  {name:{gap - 2}}{lines[0]}".rstrip(), *rest])


def _indented(text: str, width: int, indent: int = 6) -> str:
    pad = " " * indent
    return fill(text, width, initial_indent=pad, subsequent_indent=pad, break_on_hyphens=False)


def _fields(section: Section) -> list[tuple[str, Any]]:
    hints = get_type_hints(section.cls, include_extras=True)
    return [(name, hints[name]) for name in section.cls.model_fields]


def _inner(section: Section, name: str, hint: Any, prefix: str) -> Iterator[Section]:
    """Yield the sections that a field is or holds."""
    field = section.cls.model_fields[name]
    classes = [cls for cls in sections_in(hint) if list(cls.model_fields) != BOUNDS]
    if not classes or section.value is None:
        return
    value = _value(section, name)
    sentence = description_of(section.cls, name)
    registry = registry_of(field)
    if isinstance(value, Config):
        unnamed = any(getattr(part, "name", None) == "" for part in field.metadata)
        dotted = "" if unnamed else f"{prefix}{name}"
        yield Section(dotted, sentence or summary(type(value)), type(value), value, registry)
    elif value is None:
        yield Section(f"{prefix}{name}", sentence or summary(classes[0]), classes[0], None)
    elif isinstance(value, tuple | dict):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield Section(f"{prefix}{name}.{key}", summary(type(item)), type(item), item, registry)


def _flag(section: Section, name: str, hint: Any, dotted: str) -> Flag:
    field, value = section.cls.model_fields[name], _value(section, name)
    sentence = description_of(section.cls, name) or ""
    classes = list(sections_in(hint))
    argument = next((part for part in field.metadata if hasattr(part, "metavar")), None)
    if classes and list(classes[0].model_fields) == BOUNDS:
        below = _below(hint)
        shown = f"--{dotted}{below}.min, --{dotted}{below}.max"
        return Flag(shown, "null|FLOAT", _bounds(value), sentence)
    if classes:
        present = "" if isinstance(value, Config) else _shown(value)
        return Flag(f"--{dotted}", "(in a recipe file)", present, sentence or summary(classes[0]))
    values = (argument and argument.metavar) or _values(hint)
    if section.choices is not None and name == section.choices.tag and not _is_entry(section):
        values = f"{{{','.join(sorted(section.choices.names()))}}}"
    if tyro.conf.Positional in field.metadata:
        return Flag(values, "", _shown(value), sentence)
    if field.annotation is bool and tyro.conf.FlagCreatePairsOff in _markers(hint):
        return Flag(_with_aliases(dotted, argument), "", "", sentence)
    return Flag(_with_aliases(dotted, argument), values, _shown(value), sentence)


def _is_entry(section: Section) -> bool:
    """Tell whether a section is one of a list, whose kind no flag changes."""
    return section.name.rpartition(".")[2].isdigit()


def _with_aliases(dotted: str, argument: Any) -> str:
    name = (argument and argument.name) or dotted
    return ", ".join([*((argument and argument.aliases) or ()), f"--{name}"])


def _markers(hint: Any) -> tuple[Any, ...]:
    return tuple(getattr(hint, "__metadata__", ()))


def _below(hint: Any) -> str:
    """Return how the keys of nested dictionaries stand in a flag."""
    if get_origin(hint) is Annotated:
        return _below(get_args(hint)[0])
    if get_origin(hint) is not dict:
        return ""
    key, value = get_args(hint)
    choices = _literals(key)
    return f".{{{','.join(choices)}}}{_below(value)}" if choices else f".NAME{_below(value)}"


def _literals(hint: Any) -> list[str]:
    if get_origin(hint) is Literal:
        return [str(choice) for choice in get_args(hint)]
    return [text for part in get_args(hint) for text in _literals(part)]


def _origins(hint: Any) -> set[Any]:
    return {get_origin(hint)} | {o for part in get_args(hint) for o in _origins(part)}


def _value(section: Section, name: str) -> Any:
    """Return the present value of a field, its default where the section is absent."""
    if section.value is not None:
        return getattr(section.value, name, ...)  # a required flag has no value yet
    field: FieldInfo = section.cls.model_fields[name]
    return ... if field.is_required() else field.get_default(call_default_factory=True)


def _values(hint: Any) -> str:
    """Return what a flag of a type takes."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _values(inner[0])
    if origin is Literal:
        return f"{{{','.join(map(str, inner))}}}"
    if origin in (Union, UnionType):
        return "|".join(sorted(map(_values, inner), key=lambda text: text != "null"))
    if origin is tuple:
        return f"{_values(inner[0])} ..." if ... in inner else " ".join(map(_values, inner))
    if origin is dict:
        return f"{_values(inner[0])} {_values(inner[1])} ..."
    return WORDS.get(hint, getattr(hint, "__name__", "TEXT").upper())


def _shown(value: Any) -> str:
    """Return a present value as it is written on the command line; empty for a required one."""
    if value is ... or value is tyro.MISSING:
        return ""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return " ".join(f"{key} {_shown(item)}" for key, item in value.items()) or "empty"
    if isinstance(value, tuple | list):
        return " ".join(map(_shown, value)) or "empty"
    return str(value)


def _bounds(value: Any) -> str:
    if isinstance(value, dict):
        held = {key: _bounds(item) for key, item in value.items()}
        return "; ".join(f"{key}: {item}" for key, item in held.items()) or "empty"
    return f"{_shown(value.min)}, {_shown(value.max)}"
