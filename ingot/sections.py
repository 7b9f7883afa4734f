"""The sections of a recipe: strict pydantic models, some of which also take the keys of an upstream class."""

import typing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, create_model

from ingot.upstream import ELSEWHERE, fields_of

FilePath = Annotated[Path, Field(strict=False)]


@dataclass(frozen=True)
class StageFolder:
    """Marks a path key as the output of one of `stages`; `hub=True` also takes any model or tokenizer folder."""

    stages: tuple[str, ...]
    hub: bool = False

    def __init__(self, *stages: str, hub: bool = False) -> None:
        object.__setattr__(self, "stages", stages)
        object.__setattr__(self, "hub", hub)


class Section(BaseModel):
    """A section of a recipe: unknown keys and wrong types are errors."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=(), populate_by_name=True
    )


class UpstreamSection(Section):
    """A section that also takes every field of `upstream`: `class X(UpstreamSection, upstream="trl.SFTConfig")`."""

    upstream: ClassVar[str]

    def __init_subclass__(cls, upstream: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if upstream is not None:
            cls.upstream = upstream

    def upstream_values(self) -> dict[str, Any]:
        """The upstream keys that the recipe gives, to pass on unchanged."""
        names = fields_of(self.upstream)
        return {k: v for k, v in self.__dict__.items() if k in names and k in self.model_fields_set}


class RunSection(Section):
    """The run folder; `how` names the keys that say how a stage runs and change nothing in its result."""

    how: ClassVar[tuple[str, ...]] = ("dir",)
    dir: FilePath = Field(description="folder that this stage writes")

    def on_change(self) -> str:
        """What happens to a folder of another recipe: `restart` keeps it as DIR.old-N and begins anew."""
        return "restart"


class Recipe(Section):
    """What a stage reads: `class XRecipe(Recipe, stage="x")`; its docstring is the stage's help text."""

    stage: ClassVar[str]
    run: RunSection
    _source: Path | None = PrivateAttr(None)

    def __init_subclass__(cls, stage: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if stage is not None:
            cls.stage = stage

    @property
    def source(self) -> Path | None:
        """The file that the recipe was read from."""
        return self._source

    def source_files(self) -> Iterator[Path]:
        """Files outside run folders whose content the result depends on; a change of one makes the stage run again."""
        yield from ()

    def source_stamps(self) -> dict[str, str]:
        """What identifies the content of sources that are no local files, by their names."""
        return {}

    def problems(self) -> Iterator[str]:
        """Contradictions between keys, each as `section.key: what is wrong and the way out`; stages override this."""
        yield from ()


def section_of(annotation: Any) -> type[Section] | None:
    """The Section class inside an annotation such as `DataSection | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    options = (section_of(a) for a in typing.get_args(annotation))
    return next((o for o in options if o is not None), None)


@cache
def expanded(section: type[Section]) -> type[Section]:
    """The section with every upstream key as a real field, in this section and those inside it."""
    extra: dict[str, Any] = {}
    if issubclass(section, UpstreamSection):
        own = set(section.model_fields) | set(ELSEWHERE)
        extra = {
            k: (t, Field(None))
            for k, t in fields_of(section.upstream).items()
            if k not in own and not k.startswith("_")
        }
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            inner = expanded(field.annotation)
            if inner is not field.annotation:  # a class of its own cannot be sent to another process
                extra[name] = (inner, field)
    if not extra:
        return section
    return create_model(section.__name__, __base__=section, __doc__=section.__doc__, **extra)


def field_names(section: type[Section]) -> list[str]:
    """The keys of a section, as a recipe writes them."""
    return [field.alias or name for name, field in section.model_fields.items()]
