"""Types as people write them with pydantic, and what OpenAI's strict mode makes of such."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Annotated, Any, Literal, NamedTuple, Optional, Union
from uuid import UUID

import pydantic
from annotated_types import Ge, Gt, Le, Len, Lt, MultipleOf
from pydantic import BaseModel, ConfigDict, Field, HttpUrl, RootModel, TypeAdapter
from typing_extensions import TypedDict


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Point(BaseModel):
    x: float
    y: float = 0.0


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    tags: list[str] = []
    where: Point | None = None


class Tree(BaseModel):
    value: int
    children: list[Tree] = []


class Linked(BaseModel):
    value: str
    next: Optional[Linked] = None  # noqa: UP045


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: Annotated[int, Field(ge=0, le=9)]


class Dog(BaseModel):
    kind: Literal["dog"]
    good: bool


class Pet(BaseModel):
    pet: Annotated[Union[Cat, Dog], Field(discriminator="kind")]  # noqa: UP007


class Pair(NamedTuple):
    left: int
    right: str


class Options(TypedDict, total=False):
    depth: int
    name: str


class Described(BaseModel):
    id: UUID
    made: datetime
    day: date
    price: Decimal = Field(max_digits=6, decimal_places=2)
    colour: Colour = Field(description="Its colour", examples=["red"])
    level: Level


class Expr(BaseModel):
    op: Literal["+", "-"]
    left: Expr | int
    right: Expr | int


class Ids(RootModel[list[int]]):
    pass


class Bounded(BaseModel):
    code: Annotated[str, Field(pattern=r"^[A-Z]{3}-\d{4}$")]
    short: Annotated[str, Field(min_length=2, max_length=5)]
    share: Annotated[float, Field(gt=0, lt=1)]
    step: Annotated[int, Field(multiple_of=5, ge=0)]
    few: Annotated[list[int], Field(min_length=1, max_length=3)]


class Order(BaseModel):
    lines: list[Closed]
    by_name: dict[str, Point]
    notes: dict[Colour, int] = {}
    pair: tuple[int, str, bool]


PYDANTIC: dict[str, Any] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "None": None,
    "any": Any,
    "bytes": bytes,
    "decimal": Decimal,
    "date": date,
    "time": time,
    "datetime": datetime,
    "timedelta": timedelta,
    "uuid": UUID,
    "email": Annotated[str, Field(json_schema_extra={"format": "email"})],
    "url": HttpUrl,
    "list": list[int],
    "set of enum": set[Colour],
    "frozenset": frozenset[Level],
    "tuple": tuple[int, str],
    "any tuple": tuple[int, ...],
    "dict": dict[str, int],
    "dict of enum": dict[Colour, float],
    "dict of models": dict[str, Point],
    "dict of ints": dict[int, str],
    "optional": int | None,
    "union": int | str | list[bool],
    "literal": Literal["a", 1, None, True],
    "enum": Colour,
    "int enum": Level,
    "point": Point,
    "closed": Closed,
    "tree": Tree,
    "linked": Linked,
    "pet": Pet,
    "pair": Pair,
    "options": Options,
    "described": Described,
    "expression": Expr,
    "ids": Ids,
    "bounded": Bounded,
    "order": Order,
    "above": Annotated[int, Gt(3)],
    "below": Annotated[float, Lt(2.5)],
    "within": Annotated[int, Ge(-5), Le(5)],
    "steps": Annotated[float, MultipleOf(0.25)],
    "lengths": Annotated[list[str], Len(1, 2)],
    "int64": Annotated[int, Ge(-(2**63)), Lt(2**63)],
    "uint64": Annotated[int, Ge(0), Le(2**64 - 1)],
    "positive": pydantic.PositiveInt,
    "negative": pydantic.NegativeFloat,
    "base64": pydantic.Base64Str,
    "json": pydantic.Json[int],
    "past": pydantic.PastDate,
    "aware": pydantic.AwareDatetime,
    "ip": pydantic.IPvAnyAddress,
    "constrained": pydantic.constr(pattern="^(a|b)+$", max_length=6),
    "list of unions": list[Cat | Dog],
    "list of lists": list[list[Literal[0, 1]]],
    "optional model": Closed | None,
    "nested dict": dict[str, dict[str, list[int]]],
    "tree or list": Tree | list[Tree],
}

ZOD = """
import * as z from "zod";
const tree = z.object({ v: z.int(), get of() { return z.array(tree); } });
const all = {
  string: z.string(), number: z.number(), int: z.int(), int32: z.int32(), boolean: z.boolean(),
  null: z.null(), any: z.any(), literal: z.literal(["a", 1, null]), enum: z.enum(["x", "y"]),
  email: z.email(), uuid: z.uuid(), url: z.url(), date: z.iso.date(), datetime: z.iso.datetime(),
  time: z.iso.time(), duration: z.iso.duration(), ipv4: z.ipv4(), ipv6: z.ipv6(),
  optional: z.object({ a: z.string().optional(), b: z.number().nullable(), c: z.int().default(3) }),
  strict: z.strictObject({ a: z.string().min(2).max(5), b: z.number().gt(0).lte(9.5) }),
  loose: z.looseObject({ a: z.int() }), catchall: z.object({ a: z.int() }).catchall(z.string()),
  array: z.array(z.int()).min(1).max(3), tuple: z.tuple([z.string(), z.int()]),
  rest: z.tuple([z.string()], z.int()), record: z.record(z.string(), z.int()),
  keys: z.record(z.enum(["a", "b"]), z.int()),
  partial: z.partialRecord(z.enum(["a", "b"]), z.int()),
  union: z.union([z.string(), z.int(), z.array(z.boolean())]),
  kinds: z.discriminatedUnion("kind", [
    z.object({ kind: z.literal("a"), x: z.int() }),
    z.object({ kind: z.literal("b"), y: z.string() })]),
  both: z.intersection(z.object({ a: z.int() }), z.object({ b: z.string() })),
  pattern: z.string().regex(/^[a-f]{2,4}$/), starts: z.string().startsWith("ab"),
  ends: z.string().endsWith("/z"), multiple: z.int().multipleOf(4), nullish: z.int().nullish(),
  tree, list: z.array(tree), readonly: z.object({ a: z.int() }).readonly(), base64: z.base64(),
  cuid: z.cuid2(), ulid: z.ulid(), emoji: z.string().length(2), negative: z.int().negative(),
};
const made = Object.entries(all).map(([name, it]) => [name, z.toJSONSchema(it)]);
console.log(JSON.stringify(Object.fromEntries(made)));
"""


def of_pydantic() -> Iterator[tuple[str, Any]]:
    """Schemas of pydantic's two modes, and as OpenAI's client makes them strict."""
    for name, it in PYDANTIC.items():
        adapter = TypeAdapter(it)
        schema = adapter.json_schema()
        yield name, schema
        if schema.get("type") == "object":
            yield f"{name}, strict", made_strict(schema)


def made_strict(schema: Any) -> Any:
    """A schema as OpenAI's strict mode wants it: all properties required, and no others."""
    if isinstance(schema, list):
        return [made_strict(it) for it in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: made_strict(it) for key, it in schema.items() if key != "default"}
    if schema.get("type") == "object" and "properties" in schema:
        found |= {"required": [*schema["properties"]], "additionalProperties": False}
    return found
