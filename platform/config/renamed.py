"""Keys of recipes that were renamed: a recipe is told the present name, an old run is converted."""

from typing import Any

RENAMED = {
    "health.*.least": "min",
    "health.*.most": "max",
    "method.score_sigma.low": "min",
    "method.score_sigma.high": "max",
    "method.guidance.low": "min",
    "method.guidance.high": "max",
    "method.cfg_distillation.guidance.low": "min",
    "method.cfg_distillation.guidance.high": "max",
}
"""Former dotted name of a key, with `*` for any one part, and the present name of its last part."""


def present_name(name: str) -> str | None:
    """Return the present dotted name of a former key; None where it is no former key."""
    return _renamed(name, RENAMED)


def with_present_names(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of an old run's recipe under the present names of their keys."""
    return _rename(values, RENAMED)


def with_former_names(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a recipe under the names that identified runs before.

    The digest by which a comparison finds its finished runs is made of these.
    """
    former = {
        f"{name.rpartition('.')[0]}.{present}": name.rpartition(".")[2]
        for name, present in RENAMED.items()
    }
    return _with_decay_in_updates(_rename(values, former))


def _with_decay_in_updates(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with the fall of the learning rate in updates, of which the generator has
    one in a cycle."""
    schedule = values["schedule"]
    optimizers = {}
    for role, optimizer in schedule["optimizers"].items():
        found = {key: value for key, value in optimizer.items() if key != "decay"}
        if optimizer.get("decay") is not None and found["decay_steps"] is None:
            found["decay_steps"] = max(1, round(optimizer["decay"] * schedule["num_cycles"]))
        optimizers[role] = found
    return values | {"schedule": schedule | {"optimizers": optimizers}}


def _rename(values: dict[str, Any], table: dict[str, str], prefix: str = "") -> dict[str, Any]:
    renamed = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            value = _rename(value, table, f"{name}.")
        renamed[(_renamed(name, table) or name).removeprefix(prefix)] = value
    return renamed


def _renamed(name: str, table: dict[str, str]) -> str | None:
    parts = name.split(".")
    for pattern, last in table.items():
        wanted = pattern.split(".")
        if len(wanted) == len(parts) and all(
            part in ("*", given) for part, given in zip(wanted, parts, strict=True)
        ):
            return ".".join([*parts[:-1], last])
    return None
