"""One process that is a whole group."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from magicdistill.platform.cluster import ranks


@pytest.fixture
def job(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def timeout_of(group: dist.ProcessGroup | None) -> timedelta:
    own = group or dist.distributed_c10d._get_default_group()
    return own._get_backend(torch.device("cpu")).options._timeout


def test_groups_that_libraries_make_get_the_time_out_of_the_job(job: None) -> None:
    made = dist.new_group([0])
    assert isinstance(made, dist.ProcessGroup)
    assert timeout_of(made) == timedelta(minutes=30)
    ranks.set_timeout(77)
    assert timeout_of(None) == timeout_of(made) == timedelta(seconds=77)


def test_a_thread_exchanges_in_a_group_that_is_patient(job: None) -> None:
    ranks.set_timeout(77)
    group = ranks.host_group()
    assert group is not None and timeout_of(group) == ranks.PATIENCE
    with ranks.within(group):
        assert (ranks.rank(), ranks.world_size()) == (0, 1)
        assert ranks.of_all(3) == ranks.to_first(3) == [3] and ranks.of_first(3) == 3
        ranks.barrier()


def test_all_ranks_fail_where_the_first_does() -> None:
    with pytest.raises(ValueError, match="wrong"):
        ranks.first_succeeds(lambda: print(int("wrong")))
