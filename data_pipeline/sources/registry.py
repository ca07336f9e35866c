"""The sources that a recipe can name; another one is a file beside this one and a line here."""

from typing import Annotated

from magicdistill.data_pipeline.sources.base import SourceConfig
from magicdistill.data_pipeline.sources.data_sets.celebv_hq import CelebvHq
from magicdistill.data_pipeline.sources.data_sets.hdtf import Hdtf
from magicdistill.data_pipeline.sources.data_sets.inter4k import Inter4K
from magicdistill.data_pipeline.sources.data_sets.koala import Koala
from magicdistill.data_pipeline.sources.data_sets.openvid import OpenVid
from magicdistill.data_pipeline.sources.data_sets.speakervid import SpeakerVid
from magicdistill.data_pipeline.sources.data_sets.talkvid import TalkVid
from magicdistill.data_pipeline.sources.data_sets.vbench_i2v import VbenchI2v
from magicdistill.data_pipeline.sources.data_sets.vfhq import Vfhq
from magicdistill.data_pipeline.sources.folder import Folder
from magicdistill.data_pipeline.sources.json_lines import JsonLines
from magicdistill.data_pipeline.sources.package_clips import PackageClips
from magicdistill.data_pipeline.sources.portrait_clips import PortraitWorld
from magicdistill.data_pipeline.sources.table import Table
from magicdistill.models.registry import Registry

SOURCES = Registry(
    "source",
    SourceConfig,
    PortraitWorld,
    PackageClips,
    Folder,
    Koala,
    Inter4K,
    Hdtf,
    Vfhq,
    CelebvHq,
    TalkVid,
    OpenVid,
    SpeakerVid,
    VbenchI2v,
    JsonLines,
    Table,
)

Source = Annotated[SourceConfig, SOURCES]


def importers() -> set[str]:
    """Return the first parts of the names under which sources import scores."""
    return {name for cls in SOURCES for name in cls.SCORES or ()}
