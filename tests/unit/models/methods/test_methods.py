"""What a method's configuration says of itself is what its training class does."""

import subprocess
import sys
from collections import Counter

import pytest
import torch

from magicdistill.models.methods.base import MethodConfig
from magicdistill.models.methods.registry import METHODS
from magicdistill.models.networks.lora import lora_layers
from magicdistill.models.networks.placement import WHOLE
from magicdistill.models.networks.presets import ModelConfig
from magicdistill.models.objectives.types import Method

AFTER_WARM_UP = 10**6


def config_of(name: str) -> MethodConfig:
    cls = METHODS.get(name)
    assert cls is not None
    return cls.model_validate({"name": name})


def built(config: MethodConfig) -> Method:
    with torch.device("meta"):
        return config.build(ModelConfig(preset="nano"), WHOLE)


TRAINED = [
    name
    for name in METHODS.names()
    if config_of(name).roles and type(config_of(name)).__module__.startswith("magicdistill.")
]


@pytest.mark.parametrize("name", TRAINED)
def test_a_method_trains_the_roles_that_it_names(name: str) -> None:
    config, method = config_of(name), built(config_of(name))
    assert tuple(method.modules) == config.roles
    assert method.shares_batch == config.shares_batch
    lora = method.lora()
    ranks = {layer.r["default"] for layer in lora_layers(lora.transformer)} if lora else {0}
    assert ranks == {config.lora_rank}


@pytest.mark.parametrize("name", [name for name in TRAINED if config_of(name).makes != "vae"])
def test_the_planned_updates_of_a_cycle_are_those_that_run(name: str) -> None:
    config = config_of(name)
    planned = Counter({update.name: update.times for update in config.cycle_updates(embeds=False)})
    planned.pop("rollout", None)  # one for all updates
    assert planned == Counter(built(config).updates(AFTER_WARM_UP))


def test_a_method_that_trains_nothing_says_so_when_it_is_built() -> None:
    assert config_of("euler").roles == ()
    with pytest.raises(ValueError, match="euler trains nothing"):
        built(config_of("euler"))


def test_the_registry_is_read_without_torch() -> None:
    code = "import sys, magicdistill.models.methods.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
